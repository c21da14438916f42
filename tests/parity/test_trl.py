"""Our losses against TRL's, recorded by `record_trl.py`; TRL itself is not needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fuserl.objectives.pairing import best_and_worst_of_each_source
from fuserl.objectives.preference import fusepo_dpo, fusepo_simpo
from fuserl.objectives.terms import GroupScores
from fuserl.objectives.weights import uniform
from fuserl.objectives.wrpo import wrpo_ipo

ORACLE = json.loads(Path(__file__).with_name("trl.json").read_text())
ONE_PAIR = {"pairs": best_and_worst_of_each_source, "weights": uniform}


def pairs_table(policy: Tensor, reference: Tensor, num_tokens: Tensor) -> GroupScores:
    """One source, chosen in the first column with reward 1, rejected in the second with 0 (a third has 0.5)."""
    rewards = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)[: policy.shape[1]].expand_as(policy)
    return GroupScores(
        policy_logps=policy,
        reference_logps=reference,
        num_tokens=num_tokens,
        rewards=rewards,
        source=torch.zeros_like(num_tokens),
        given=torch.full_like(policy, torch.nan),
        valid=torch.ones_like(policy, dtype=torch.bool),
    )


def ours(case: dict) -> Tensor:
    """The same loss by our functions, one value a pair. TRL's smoothing, γ and IPO's averaging are translated."""
    policy, reference = (torch.tensor(case[c], dtype=torch.float64).T for c in ("policy_logps", "reference_logps"))
    num_tokens, hyper = torch.tensor(case["num_tokens"]).T, case["hyper"]
    scores = pairs_table(policy, reference, num_tokens)
    if case["loss_type"] == "sigmoid":
        return fusepo_dpo(scores, beta=hyper["beta"], **ONE_PAIR).sum
    if case["loss_type"] == "sigmoid_norm":
        return fusepo_dpo(scores, beta=hyper["beta"], normalize="length", **ONE_PAIR).sum
    if case["loss_type"] == "simpo":
        ratio = hyper["simpo_gamma"] / hyper["beta"]
        smoothing = hyper["label_smoothing"]
        return fusepo_simpo(
            scores, beta=hyper["beta"], gamma_beta_ratio=ratio, label_smoothing=smoothing, **ONE_PAIR
        ).sum
    # TRL's IPO averages over tokens; WRPO's sums. With averages as its log-probs and α = 0, WRPO's is TRL's. The third
    # column is the source's response that α = 0 ignores.
    averages = [torch.cat([side / num_tokens, side[:, :1]], dim=1) for side in (policy, reference)]
    with_source = pairs_table(*averages, torch.cat([num_tokens, num_tokens[:, :1]], dim=1).clone())._replace(
        source=torch.tensor([0, 0, 1]).expand(len(policy), 3)
    )
    return wrpo_ipo(with_source, target=0, tau=hyper["beta"], alpha=0.0).sum


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: case["name"])
def test_agrees_with_trl(case: dict) -> None:
    assert ours(case).mean().item() == pytest.approx(case["loss"], rel=1e-12), f"oracle: trl {ORACLE['trl']}"


def test_the_record_covers_what_is_claimed() -> None:
    assert ORACLE["trl"].startswith("1.16.")
    assert {case["loss_type"] for case in ORACLE["cases"]} == {"sigmoid", "sigmoid_norm", "ipo", "simpo"}

"""Weighted-reward preference optimisation: a source's best and the target's best against the target's worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fuserl.objectives.links import logistic, squared
from fuserl.objectives.pairing import best_and_worst, mark, take
from fuserl.objectives.preference import pair_totals
from fuserl.objectives.terms import GroupScores, Pairs, Totals


class Triple(NamedTuple):
    """Columns of the three responses of each prompt, [P, 1] each."""

    source_best: Int[Tensor, "P 1"]
    target_best: Int[Tensor, "P 1"]
    target_worst: Int[Tensor, "P 1"]
    valid: Bool[Tensor, "P 1"]


def triple(scores: GroupScores, *, target: int) -> Triple:
    """Best of all sources but the target, and the target's own best and worst.

    Args:
        target: number of the target in the data set's list of sources.
    """
    own = scores.valid & (scores.source == target)
    others = scores.valid & (scores.source != target) & ~scores.rewards.isnan()
    source_best = best_and_worst(scores.rewards, others)[0]
    target_best, target_worst, differ = best_and_worst(scores.rewards, own)
    valid = differ & others.any(dim=1)
    return Triple(*(part[:, None] for part in (source_best, target_best, target_worst, valid)))


def target_pairs(scores: GroupScores, *, target: int) -> Pairs:
    """The target's best against its worst, for metrics."""
    found = triple(scores, target=target)
    return Pairs(found.target_best, found.target_worst, found.valid.to(torch.float64), found.valid)


def read_by_wrpo(scores: GroupScores, *, target: int) -> Bool[Tensor, "P K"]:
    """The three responses."""
    found = triple(scores, target=target)
    columns = torch.cat([found.source_best, found.target_best, found.target_worst], dim=1)
    return mark(columns, found.valid.expand_as(columns), scores.valid.shape[1])


def wrpo(
    scores: GroupScores,
    *,
    target: int,
    link: Callable[[Tensor], Tensor],
    reward: Callable[..., Tensor],
    alpha: float,
    schedule: str = "linear",
    average_of_losses: bool = False,
    count: str = "prompt",
    nll: float = 0.0,
    progress: float = 0.0,
) -> Totals:
    """link(α r(y_ws) + (1 - α) r(y_wt) - r(y_l)) (arXiv:2412.03187).

    Args:
        link: `dpo_link`, `simpo_link` or `links.squared` of the combined margin.
        reward: implicit reward of one response: `log_ratio` (scaled by β) or `length_normalised`.
        alpha: weight of the source's response at the end of training, [0, 1].
        schedule: `linear` rises from 0 with the optimiser steps, `constant` stays at `alpha`.
        average_of_losses: the released code's `sigmoid` form: α link(ws, l) + (1 - α) link(wt, l).
    """
    found = triple(scores, target=target)
    now = alpha * progress if schedule == "linear" else alpha
    ws, wt, worst = (reward(scores, side, found.valid) for side in (found.source_best, found.target_best, found.target_worst))
    if average_of_losses:
        loss = now * link(ws - worst) + (1 - now) * link(wt - worst)
    else:
        loss = link(now * ws + (1 - now) * wt - worst)
    pairs = Pairs(found.target_best, found.target_worst, found.valid.to(loss.dtype), found.valid)
    return pair_totals(scores, pairs, loss, count=count, nll=nll)


def log_ratio(scores: GroupScores, side: Tensor, valid: Tensor, *, beta: float) -> Tensor:
    """β (log π - log π_ref), summed over the response; β per nat."""
    return beta * take(scores.policy_logps - scores.reference_logps, side, valid)


def length_normalised(scores: GroupScores, side: Tensor, valid: Tensor, *, beta: float) -> Tensor:
    """β log π / |y|: SimPO's reward; β per nat a token."""
    return beta * take(scores.policy_logps, side, valid) / take(scores.num_tokens, side, valid).clamp(min=1)


def dpo_link(margin: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """-log σ(margin)."""
    return logistic(margin, label_smoothing=label_smoothing)


def simpo_link(margin: Tensor, *, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """-log σ(margin - γ)."""
    return logistic(margin - gamma, label_smoothing=label_smoothing)


def ipo_link(margin: Tensor, *, tau: float) -> Tensor:
    """(margin - 1/(2τ))²; the margin is in nats, so its reward takes β = 1."""
    return squared(margin, tau=tau)

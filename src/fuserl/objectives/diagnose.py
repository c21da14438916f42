"""Can this objective learn anything from this data, and do its settings make sense? Said before a model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.objectives.pairing import same_source
from fuserl.objectives.terms import GroupScores, Objective

ACROSS = (
    "pair over sources with `pairs=across_sources` (objective=fusepo_dpo or fusepo_simpo) or "
    "`objective.baseline=prompt` (objective=fusepo_rloo); `objective=sft_best` and `objective=fusesft` apply as they "
    "are"
)


def require_applicable(objective: Objective, scores: GroupScores) -> None:
    """Raise when no prompt of a whole data set carries a signal for the objective.

    Args:
        scores: the data set as one table; its log-probs are not looked at.

    Raises:
        FuserlError: a negative weight in the data; no rewards, one response a prompt, all rewards equal, one sample a
            source, no target samples, or no weights; with the objectives that do apply.
    """
    where = f"objective `{objective.name}`"
    if bool((scores.valid & (scores.given < 0)).any()):
        raise FuserlError("a weight given by the data is negative", where=where, hint="mend `responses[].weight`")
    zeros = torch.zeros_like(scores.policy_logps)
    blank = scores._replace(policy_logps=zeros, reference_logps=zeros)
    if bool((objective.loss(blank, progress=0.0).weight > 0).any()):
        return
    what, hint = _why(objective, scores)
    raise FuserlError(what, where=where, hint=hint)


def cautions(objective: Objective) -> tuple[str, ...]:
    """What others' runs broke on, in sentences for the user; nothing where there is nothing to say.

    The same `beta` is per nat of a summed log-ratio in one loss and per nat a token in another: values that fit the
    one are a hundred times off in the other.
    """
    hypers = getattr(objective.loss, "keywords", {})
    beta = hypers.get("beta")
    if beta is None:
        return ()
    if "gamma_beta_ratio" in hypers or hypers.get("normalize") == "length":
        if beta < 1:
            return (
                f"caution: `objective.beta={beta}` is per nat a token in `{objective.name}` as it is set; below 1 SimPO "
                "and length-normalised DPO are known to break (papers: 2 to 10)",
            )
    elif objective.starts_at_ln2 and beta > 1:
        return (
            f"caution: `objective.beta={beta}` is per nat of the summed log-ratio in `{objective.name}` as it is set; "
            "above 1 DPO hardly moves from the reference (papers: 0.01 to 0.5)",
        )
    return ()


def _why(objective: Objective, scores: GroupScores) -> tuple[str, str]:
    """What is wrong, and the way out; the widest reason first."""
    scored = scores.valid & ~scores.rewards.isnan()
    samples = torch.where(scored[:, None, :] & same_source(scores), 1, 0).sum(dim=2)
    if not scores.valid.any():
        return "there are no responses", "check `data.path` and `data.sources`"
    if bool(objective.select(scores).any()):
        return (
            "the weight rule gives every response the weight 0",
            "fill `responses[].reward`, or `responses[].weight` for `weights=given`, or use `weights=uniform`",
        )
    if not scored.any():
        return (
            "no response has a reward",
            "score them first (`responses[].reward`); without rewards `objective=fusesft weights=uniform` learns from all "
            "responses, if `objective.size` lets all of them in",
        )
    if int(scores.valid.sum(dim=1).max()) < 2:
        return (
            "every prompt has a single response, so nothing can be preferred",
            "`objective=sft_best` and `objective=fusesft` apply; preference objectives need two responses a prompt",
        )
    if "target" in objective.reads:
        return (
            "no prompt holds what WRPO compares: two samples of the target with different rewards, and a source's "
            "response",
            "sample the target several times a prompt, score it, and name it with `target_source=NAME`; "
            "`objective=fusesft` and `objective=fusepo_dpo` need no samples of the target",
        )
    if not _differ(scores.rewards[:, None, :], scored[:, None, :]).any():
        return (
            "all rewards of every prompt are equal, so nothing can be preferred",
            "score with a finer scorer; `objective=fusesft weights=uniform` applies as it is",
        )
    if int(samples.max()) < 2:
        return "every source has a single sample a prompt, so there is no pair inside a source", ACROSS
    inside_source = scored[:, None, :] & same_source(scores)
    if _differ(scores.rewards[:, None, :], inside_source).any():
        return (
            "no prompt has a pair: the source that owns the best response has equal rewards, or the reward gap falls "
            "outside the window",
            "widen `objective.pairs.min_gap` and `objective.pairs.max_gap`, or use `objective=fusepo_dpo`, which pairs "
            "inside every source",
        )
    return "no source has two samples of different reward for the same prompt", ACROSS


def _differ(rewards: Tensor, mask: Tensor) -> Tensor:
    """Whether the rewards under a mask hold two different values."""
    return torch.where(mask, rewards, -torch.inf).amax(dim=-1) > torch.where(mask, rewards, torch.inf).amin(dim=-1)

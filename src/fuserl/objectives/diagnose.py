"""Can this objective learn anything from this data? Said before a model is loaded."""

from __future__ import annotations

import torch

from fuserl.errors import FuserlError
from fuserl.objectives.terms import GroupScores, Objective


def require_applicable(objective: Objective, scores: GroupScores) -> None:
    """Raise when no prompt of the table carries a signal for the objective.

    Raises:
        FuserlError: no rewards, one response a prompt, one sample a source, all rewards equal, or no target samples;
            with the objectives that do apply.
    """
    where = f"objective `{objective.name}`"
    if bool((objective.loss(scores, progress=0.0).weight > 0).any()):
        return
    known = scores.valid & ~scores.rewards.isnan()
    if not known.any():
        raise FuserlError("no response has a reward", where=where, hint="score the responses first, or use `objective=fusesft weights=uniform`")
    if int(scores.valid.sum(dim=1).max()) < 2:
        raise FuserlError(
            "every prompt has a single response, so nothing can be preferred",
            where=where,
            hint="`objective=sft_best` applies; preference objectives need at least two responses a prompt",
        )
    high = torch.where(known, scores.rewards, -torch.inf).amax(dim=1)
    low = torch.where(known, scores.rewards, torch.inf).amin(dim=1)
    if not bool((high > low).any()):
        raise FuserlError(
            "all rewards of every prompt are equal, so nothing can be preferred",
            where=where,
            hint="score with a finer scorer, or use `objective=fusesft weights=uniform`",
        )
    if "target" in objective.reads:
        raise FuserlError(
            "no prompt has the target's own best and worst answer beside a source's",
            where=where,
            hint="sample the target several times a prompt and name it with `target_source=NAME`",
        )
    most = max(int((scores.valid & (scores.source == source)).sum(dim=1).max()) for source in range(int(scores.source.max()) + 1))
    if most < 2:
        raise FuserlError(
            "every source has a single sample a prompt, so there is no pair inside a source",
            where=where,
            hint="`objective=sft_best`, `objective=fusesft` apply as they are; `pairs=across_sources` pairs the best "
            "response of all sources with the worst (fusepo_dpo, fusepo_simpo)",
        )
    raise FuserlError(
        "no source has two samples of different reward for the same prompt",
        where=where,
        hint="`pairs=across_sources` pairs over sources (fusepo_dpo, fusepo_simpo); `objective=fusesft` applies as it is",
    )

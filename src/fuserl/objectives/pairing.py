"""Which responses of a prompt are set against each other. Equal rewards make no pair; ties take the first column."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.objectives.terms import GroupScores, Pairs
from fuserl.objectives.weights import Rule


def best_and_worst(rewards: Float[Tensor, "P K"], mask: Bool[Tensor, "P K"]) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of the highest and the lowest reward among `mask`, and whether the two differ; [P] each."""
    mask = mask & ~rewards.isnan()
    high = torch.where(mask, rewards, -torch.inf)
    low = torch.where(mask, rewards, torch.inf)
    return high.argmax(dim=1), low.argmin(dim=1), mask.any(dim=1) & (high.amax(dim=1) > low.amin(dim=1))


def best_and_worst_of_each_source(scores: GroupScores) -> Pairs:
    """One pair for every source: its best against its worst sample (FuseRL; arXiv:2504.06562)."""
    found = [
        best_and_worst(scores.rewards, scores.valid & (scores.source == source)) for source in range(_num_sources(scores))
    ]
    return _pairs(*(torch.stack(part, dim=1) for part in zip(*found, strict=True)))


def best_source(scores: GroupScores, *, min_gap: float | None = None, max_gap: float | None = None) -> Pairs:
    """One pair a prompt, inside the source that owns the best response (FuseChat-3.0; arXiv:2503.04222).

    Args:
        min_gap, max_gap: keep pairs whose reward gap lies between them (reward units, ends included).
    """
    owner = scores.source.gather(1, _best_of_all(scores)[:, None])
    chosen, rejected, valid = best_and_worst(scores.rewards, scores.valid & (scores.source == owner))
    gap = (_column(scores.rewards, chosen) - _column(scores.rewards, rejected)).nan_to_num()
    slack = 1e-9  # decimal fractions such as 0.15 - 0.05 are not exact
    if min_gap is not None:
        valid = valid & (gap >= min_gap - slack)
    if max_gap is not None:
        valid = valid & (gap <= max_gap + slack)
    return _pairs(chosen[:, None], rejected[:, None], valid[:, None])


def across_sources(scores: GroupScores) -> Pairs:
    """One pair a prompt: the best of all responses against the worst of all, whoever wrote them."""
    return _pairs(*(part[:, None] for part in best_and_worst(scores.rewards, scores.valid)))


def read_by_pairs(scores: GroupScores, *, pairs: Callable[[GroupScores], Pairs]) -> Bool[Tensor, "P K"]:
    """The responses that stand in a pair."""
    found = pairs(scores)
    sides = torch.cat([found.chosen, found.rejected], dim=1)
    return mark(sides, torch.cat([found.valid, found.valid], dim=1), scores.valid.shape[1])


def mark(columns: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"], width: int) -> Bool[Tensor, "P K"]:
    """True at the named columns."""
    counts = torch.zeros(len(columns), width, dtype=torch.long, device=columns.device)
    return counts.scatter_add(1, columns, valid.long()) > 0


def weigh(scores: GroupScores, pairs: Pairs, rule: Rule, *, masked: str) -> Pairs:
    """Weigh pairs by their chosen sides' rewards: a source weighs by its best (papers' "Eq. (8)").

    Args:
        masked: what becomes of the weight of a source without a pair: `renormalise` gives it to the others, `keep`
            leaves it out of the loss, which then weighs less than 1.
    """
    there = pairs.valid if masked == "renormalise" else _has_best(scores, pairs)
    weight = rule(take(scores.rewards, pairs.chosen, there), there, take(scores.given, pairs.chosen, there))
    return pairs._replace(weight=torch.where(pairs.valid, weight, 0.0))


def take(values: Tensor, columns: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"]) -> Tensor:
    """`values` at `columns`; 0 where invalid, whatever stands there."""
    return torch.where(valid, values.gather(1, columns), 0)


def _has_best(scores: GroupScores, pairs: Pairs) -> Tensor:
    """Pairs whose chosen side exists and is scored, with or without a worse one."""
    return scores.valid.gather(1, pairs.chosen) & ~scores.rewards.gather(1, pairs.chosen).isnan() & _first(scores, pairs)


def _first(scores: GroupScores, pairs: Pairs) -> Tensor:
    """For one pair a source: the source answered at all (argmax of nothing is column 0, which is another's)."""
    slots = pairs.chosen.shape[1]
    if slots == 1:
        return torch.ones_like(pairs.valid)
    return scores.source.gather(1, pairs.chosen) == torch.arange(slots, device=pairs.chosen.device)


def _best_of_all(scores: GroupScores) -> Int[Tensor, " P"]:
    return best_and_worst(scores.rewards, scores.valid)[0]


def _column(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns[:, None]).squeeze(1)


def _num_sources(scores: GroupScores) -> int:
    return int(scores.source.max()) + 1 if scores.source.numel() else 1


def _pairs(chosen: Tensor, rejected: Tensor, valid: Tensor) -> Pairs:
    return Pairs(chosen, rejected, valid.to(torch.float64), valid)

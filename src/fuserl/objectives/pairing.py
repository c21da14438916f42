"""Which responses of a prompt are set against each other. Equal rewards make no pair; ties take the first column.

Pairs inside sources stand in the slot of the column where their source first appears: K slots, most of them empty.
So nothing depends on how the sources are numbered, and no number has to come back from the device to shape a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.objectives.terms import GroupScores, Number, Pairs, one_of
from fuserl.objectives.weights import Rule

Pairing = Callable[[GroupScores], Pairs]


def best_and_worst(
    rewards: Float[Tensor, "*P K"], mask: Bool[Tensor, "*P K"]
) -> tuple[Int[Tensor, "*P"], Int[Tensor, "*P"], Bool[Tensor, "*P"]]:
    """Columns of the highest and of the lowest reward among the scored of `mask`, and whether the two differ.

    >>> rewards = torch.tensor([[0.2, 0.9, 0.9, 0.1]])
    >>> [part.tolist() for part in best_and_worst(rewards, torch.tensor([[True, True, True, False]]))]
    [[1], [0], [True]]
    """
    mask = mask & ~rewards.isnan()
    high = torch.where(mask, rewards, -torch.inf)
    low = torch.where(mask, rewards, torch.inf)
    return high.argmax(dim=-1), low.argmin(dim=-1), mask.any(dim=-1) & (high.amax(dim=-1) > low.amin(dim=-1))


def best_and_worst_of_each_source(scores: GroupScores) -> Pairs:
    """One pair for every source: its best against its worst sample (FuseRL, arXiv:2504.06562)."""
    same_PKK = same_source(scores)
    chosen, rejected, differ = best_and_worst(scores.rewards[:, None, :].expand(same_PKK.shape), same_PKK)
    return unweighted(scores, chosen, rejected, differ & first_of_source(scores))


def best_source(scores: GroupScores, *, min_gap: Number | None = None, max_gap: Number | None = None) -> Pairs:
    """One pair a prompt, inside the source that owns the best response (FuseChat-3.0, arXiv:2503.04222).

    Args:
        min_gap: smallest reward gap of a pair, itself allowed (reward units); None for no limit.
        max_gap: largest reward gap of a pair, itself allowed.
    """
    overall_best, _, _ = best_and_worst(scores.rewards, scores.valid)
    owner = scores.source.gather(1, overall_best[:, None])
    chosen, rejected, valid = best_and_worst(scores.rewards, scores.valid & (scores.source == owner))
    found = unweighted(scores, chosen[:, None], rejected[:, None], valid[:, None])
    high, low = (take(scores.rewards, side, found.valid) for side in (found.chosen, found.rejected))
    slack = 1e-6 * (high.abs() + low.abs())  # 0.15 - 0.05 is a little off 0.1 in any precision
    inside = found.valid
    if min_gap is not None:
        inside = inside & (high - low >= min_gap - slack)
    if max_gap is not None:
        inside = inside & (high - low <= max_gap + slack)
    return unweighted(scores, found.chosen, found.rejected, inside)


def across_sources(scores: GroupScores) -> Pairs:
    """One pair a prompt: the best of all responses against the worst of all, whoever wrote them."""
    return unweighted(scores, *(part[:, None] for part in best_and_worst(scores.rewards, scores.valid)))


def read_by_pairs(scores: GroupScores, *, pairs: Pairing, masked: str = "renormalise") -> Bool[Tensor, "P K"]:
    """The responses whose log-probs a pair needs.

    Args:
        masked: as the loss has it: with `keep`, the best response of a source without a pair stays in the table,
            because its reward holds a share of the weights.
    """
    found = pairs(scores)
    width = scores.valid.shape[1]
    read = mark(found.chosen, found.valid, width) | mark(found.rejected, found.valid, width)
    return read | mark(found.chosen, _weighing(scores, found, masked), width)


def joined_by_pairs(scores: GroupScores, *, pairs: Pairing) -> Int[Tensor, "P K"]:
    """A number for every response, equal for those that pairs join, also by way of others: `Objective.units`."""
    found = pairs(scores)
    width = scores.valid.shape[1]
    unit = torch.arange(width, device=scores.valid.device).expand(scores.valid.shape)
    for chosen, rejected, valid in zip(
        *(part.unbind(dim=1) for part in (found.chosen, found.rejected, found.valid)), strict=True
    ):
        one, other = (unit.gather(1, side[:, None]) for side in (chosen, rejected))
        unit = torch.where(valid[:, None] & (unit == other), one, unit)
    return unit


def mark(columns: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"], width: int) -> Bool[Tensor, "P K"]:
    """True at the named columns of a table with `width` columns."""
    counts = torch.zeros(len(columns), width, dtype=torch.long, device=columns.device)
    return counts.scatter_add(1, columns, valid.long()) > 0


def weigh(scores: GroupScores, pairs: Pairs, rule: Rule, *, masked: str) -> Pairs:
    """Weigh pairs by their chosen sides' rewards: a source weighs by its best (papers' "Eq. (8)").

    Args:
        masked: what becomes of the weight of a source without a pair: `renormalise` gives it to the others, `keep`
            leaves it out of the loss, which then weighs less than 1.
    """
    there = _weighing(scores, pairs, masked)
    # In the precision of the log-probs, so that a loss in float64 is one throughout.
    reward, given = (
        take(values.to(scores.policy_logps.dtype), pairs.chosen, there) for values in (scores.rewards, scores.given)
    )
    return pairs._replace(weight=torch.where(pairs.valid, rule(reward, there, given), 0.0))


def take(values: Tensor, columns: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"]) -> Tensor:
    """`values` at `columns`, [P, S]; 0 where invalid, whatever stands there."""
    return torch.where(valid, values.gather(1, columns), 0)


def same_source(scores: GroupScores) -> Bool[Tensor, "P K K"]:
    """Whether responses i and j of a prompt are both there and written by the same source."""
    equal_PKK = scores.source[:, :, None] == scores.source[:, None, :]
    return equal_PKK & scores.valid[:, :, None] & scores.valid[:, None, :]


def first_of_source(scores: GroupScores) -> Bool[Tensor, "P K"]:
    """True at the first column of every source of a prompt: the source's slot."""
    earlier_PKK = same_source(scores).tril(diagonal=-1)
    return scores.valid & ~earlier_PKK.any(dim=2)


def unweighted(
    scores: GroupScores, chosen: Int[Tensor, "P S"], rejected: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"]
) -> Pairs:
    """Pairs that weigh 1 each."""
    return Pairs(chosen, rejected, valid.to(scores.rewards.dtype), valid)


def _weighing(scores: GroupScores, pairs: Pairs, masked: str) -> Bool[Tensor, "P S"]:
    """The pairs that take part in the weights; with `keep` also those whose best and worst are equal."""
    if one_of("masked", masked, "renormalise", "keep") == "renormalise" or pairs.valid.shape != scores.valid.shape:
        return pairs.valid  # a single pair a prompt has no other weight to be kept from
    scored = scores.valid & ~scores.rewards.isnan()
    its_own = scores.source.gather(1, pairs.chosen) == scores.source  # the best of nothing is column 0, another's
    return first_of_source(scores) & its_own & scored.gather(1, pairs.chosen)


def best_response(rewards: Float[Tensor, "P K"], valid: Bool[Tensor, "P K"]) -> Int[Tensor, " P"]:
    """Column of the highest reward (the first of equals; the first valid one where nothing is scored)."""
    known = torch.where(valid & ~rewards.isnan(), rewards.double(), -1e300)
    return torch.where(valid, known, -torch.inf).argmax(dim=1)

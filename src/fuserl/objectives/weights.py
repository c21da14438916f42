"""Weights over the sources (or responses) of one prompt: never negative, Σ = 1, absent entries 0.

A rule is called as `rule(values, valid, given)`, all `[P, S]`: the rewards to weigh by, which entries are there, and
the weights that the data set gives. Where a rule finds nothing to weigh by, all weights of the prompt are 0: the
prompt carries no signal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.objectives.terms import Number

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax(
    values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"], *, tau: Number
) -> Float[Tensor, "P S"]:
    """exp(value / τ), normalised: FuseRL's rule (arXiv:2504.06562, known as its "Eq. (8)").

    Args:
        tau: temperature in reward units, > 0.

    Raises:
        FuserlError: τ is not positive.

    >>> values = torch.tensor([[0.15, 0.14, 0.13, 0.12]], dtype=torch.float64)
    >>> [round(w, 4) for w in softmax(values, values > 0, values, tau=0.01)[0].tolist()]
    [0.6439, 0.2369, 0.0871, 0.0321]
    """
    if not tau > 0:
        raise FuserlError(
            f"the temperature of the weights must be positive, not {tau}",
            where="`weights.tau`",
            hint="use `weights=best` for the limit of 0",
        )
    scored = valid & ~values.isnan()
    top = torch.where(scored, values, -torch.inf).amax(dim=1, keepdim=True)
    below_top = torch.where(scored, values - top, 0.0)  # the largest exponent is 0, so nothing overflows
    return _normalised(torch.where(scored, (below_top / tau).exp(), 0.0))


def uniform(
    values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]
) -> Float[Tensor, "P S"]:
    """The same for all that are there, scored or not: softmax's limit for τ → ∞."""
    return _normalised(valid.to(values.dtype))


def best(values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]) -> Float[Tensor, "P S"]:
    """The best alone, equals sharing: softmax's limit for τ → 0."""
    scored = valid & ~values.isnan()
    top = torch.where(scored, values, -torch.inf).amax(dim=1, keepdim=True)
    return _normalised((scored & (values == top)).to(values.dtype))


def given(
    values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]
) -> Float[Tensor, "P S"]:
    """The data set's own weights (`responses[].weight`), normalised over what is there; unweighted entries get 0."""
    return _normalised(torch.where(valid & ~given.isnan(), given, 0.0).clamp(min=0))


def rank(values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]) -> Float[Tensor, "P S"]:
    """By order alone: of n entries the best weighs n, the next n - 1, ..., equals their mean; then normalised.

    >>> values = torch.tensor([[0.9, 0.1, 0.5]])
    >>> [round(w, 4) for w in rank(values, values > 0, values)[0].tolist()]
    [0.5, 0.1667, 0.3333]
    """
    scored = valid & ~values.isnan()
    both_PSS = scored[:, :, None] & scored[:, None, :]
    beaten = ((values[:, :, None] > values[:, None, :]) & both_PSS).sum(dim=2)
    equal = ((values[:, :, None] == values[:, None, :]) & both_PSS).sum(dim=2)  # itself counted
    return _normalised((beaten + 0.5 * (equal + 1)).to(values.dtype) * scored)


def auto_tau(rewards: Float[Tensor, "N K"], valid: Bool[Tensor, "N K"]) -> float:
    """A temperature for `softmax`: the median over prompts of the reward spread (best less worst), in reward units.

    Where that median is 0, as with right-or-wrong rewards that mostly agree, the median over the prompts whose rewards
    differ. Prompts with fewer than two scored responses do not count.

    Raises:
        FuserlError: no prompt has two different rewards.

    >>> rewards = torch.tensor([[0.1, 0.2], [0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
    >>> round(auto_tau(rewards, rewards > 0), 4)
    0.1
    """
    scored = valid & ~rewards.isnan()
    high = torch.where(scored, rewards, -torch.inf).amax(dim=1)
    low = torch.where(scored, rewards, torch.inf).amin(dim=1)
    spread = (high - low)[scored.sum(dim=1) > 1]
    if not (spread > 0).any():
        raise FuserlError(
            "no prompt has two different rewards, so there is nothing to set the temperature by",
            where="`weights.tau=auto`",
            hint="score the responses (`responses[].reward`), give `weights.tau` a number, or use `weights=uniform`",
        )
    return _median(spread) or _median(spread[spread > 0])


def _median(values: Tensor) -> float:
    """The middle value, or the mean of the two middle ones (torch's own takes the lower of the two)."""
    ordered = values.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), 0.0)

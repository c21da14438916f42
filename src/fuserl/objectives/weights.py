"""Weights over the sources (or responses) of one prompt. Every rule: non-negative, sums to 1, absent entries get 0.

A rule is called as `rule(values, valid, given)`, all `[P, S]`: the rewards to weigh by, which entries are there, and
the weights that the data set gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.errors import FuserlError

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax(
    values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"], *, tau: float
) -> Float[Tensor, "P S"]:
    """exp(value / τ), normalised: FuseRL's rule (papers' "Eq. (8)"). τ is in reward units, > 0.

    >>> values = torch.tensor([[0.15, 0.14, 0.13, 0.12]], dtype=torch.float64)
    >>> [round(w, 4) for w in softmax(values, values > 0, values, tau=0.01)[0].tolist()]
    [0.6439, 0.2369, 0.0871, 0.0321]
    """
    if not tau > 0:
        raise FuserlError(f"the softmax temperature must be positive, not {tau}", where="`weights.tau`", hint="use `weights=best` for the limit of 0")
    values = _known(values, valid)
    top = torch.where(valid, values, -torch.inf).amax(dim=1, keepdim=True)
    scaled = torch.where(valid, (values - torch.where(top.isfinite(), top, 0.0)) / tau, -torch.inf)
    return _normalised(scaled.exp())


def uniform(
    values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]
) -> Float[Tensor, "P S"]:
    """The same for all: softmax's limit for τ → ∞."""
    return _normalised(valid.to(values.dtype))


def best(values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]) -> Float[Tensor, "P S"]:
    """The best alone, equals sharing: softmax's limit for τ → 0."""
    values = torch.where(valid, _known(values, valid), -torch.inf)
    return _normalised((valid & (values == values.amax(dim=1, keepdim=True))).to(values.dtype))


def given(values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]) -> Float[Tensor, "P S"]:
    """The data set's own weights (`responses[].weight`), normalised over what is there; unweighted entries get 0."""
    return _normalised(torch.where(valid & ~given.isnan(), given, 0.0).clamp(min=0))


def rank(values: Float[Tensor, "P S"], valid: Bool[Tensor, "P S"], given: Float[Tensor, "P S"]) -> Float[Tensor, "P S"]:
    """By order alone: of n entries the best weighs n, the next n - 1, ..., equals their mean; then normalised."""
    values = _known(values, valid)
    below = (values[:, :, None] > values[:, None, :]) & valid[:, None, :]
    level = (values[:, :, None] == values[:, None, :]) & valid[:, None, :]
    points = below.sum(dim=2) + 0.5 * (level.sum(dim=2) + 1)
    return _normalised(torch.where(valid, points.to(values.dtype), 0.0))


def auto_tau(rewards: Float[Tensor, "P K"], valid: Bool[Tensor, "P K"]) -> float:
    """Median within-prompt spread (best less worst) of the prompts whose rewards differ, in reward units.

    Raises:
        FuserlError: no prompt has two different rewards.
    """
    known = valid & ~rewards.isnan()
    high = torch.where(known, rewards, -torch.inf).amax(dim=1)
    low = torch.where(known, rewards, torch.inf).amin(dim=1)
    spread = (high - low)[known.any(dim=1)]
    spread = spread[spread > 0]
    if not len(spread):
        raise FuserlError(
            "no prompt has two different rewards, so there is nothing to set the temperature by",
            where="`weights.tau=auto`",
            hint="score the responses first, or use `weights=uniform`",
        )
    return float(spread.median())


def _known(values: Tensor, valid: Tensor) -> Tensor:
    """Absent and unscored entries as 0: they are masked by the caller, or all alike."""
    return torch.where(valid & ~values.isnan(), values, 0.0)


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), 0.0)

"""SCE (arXiv:2408.07990): select, calculate, erase, merge. Three published variants, which disagree.

Of K experts' deltas `δ` on one matrix, positions with the largest variance are selected, `η` are shares of the selected
energy, and signs that disagree with the sum's are erased:

| | `paper` (Algorithm 1) | `authors_code` (their fork of mergekit) | `mergekit` (0.1.5) |
|---|---|---|---|
| selection reaches | deltas and η | η alone | deltas and η |
| sign of | the selected sum | the whole sum, 0 counts as + | the selected sum, 0 counts as + |
| result | Σ η δ' | Σ η δ' / Σ of the η that survive | the same, the divisor at least 1e-6 |
| η where there is no energy | equal | equal | equal, also below a mean energy of 1e-6 |
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.merging.units import Unit, shares
from fuserl.merging.weighted import Variant, Weighted, selected, taken, variance

LEAST = 1e-6  # mergekit: of the divisor, and of the mean energy


def sce(*, select: float, variant: Variant, unit: Unit) -> Weighted:
    """The method, for `fuserl merge`.

    Raises:
        FuserlError: `select` is no share.
    """
    return Weighted(variant, unit, select)


def fused(
    deltas: Float[Tensor, " J *shape"], *, select: float, variant: Variant
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, " J"]]:
    """The merged delta of one matrix and η, all at once: what the streamed method must agree with.

    Of positions with equal variance, the first ones are selected.
    """
    flat = deltas.reshape(len(deltas), -1)
    mask = positions(variance(flat), select)
    eta = shares(selected(flat, mask).square().mean(1), variant.least)
    return variant.combine(flat, mask, eta[:, None]).reshape(deltas.shape[1:]), eta


def positions(varying: Float[Tensor, " n"], select: float) -> Bool[Tensor, " n"]:
    """Select: the positions of the largest variance."""
    if select >= 1:
        return torch.ones_like(varying, dtype=torch.bool)
    order = varying.argsort(descending=True, stable=True)
    chosen = order[: taken(select, int(torch.count_nonzero(varying)))]
    return torch.zeros_like(varying, dtype=torch.bool).index_fill_(0, chosen, True)


def _as_in_the_paper(deltas: Tensor, mask: Tensor | None, eta: Tensor) -> Tensor:
    """Erase, merge: Σ η δ', of the selected deltas."""
    kept = selected(deltas, mask)
    agree = kept.sign() == kept.sum(0).sign()
    return (eta * kept).mul_(agree).sum(0)


def _as_in_mergekit(deltas: Tensor, mask: Tensor | None, eta: Tensor) -> Tensor:
    """The same, divided by the η that survive."""
    kept = selected(deltas, mask)
    surviving = eta * _with_the_majority(kept)
    return (kept * surviving).sum(0) / surviving.sum(0).clamp(min=LEAST)


def _as_in_the_authors_code(deltas: Tensor, mask: Tensor | None, eta: Tensor) -> Tensor:
    """All deltas, selected or not; divided by the η that survive."""
    surviving = eta * _with_the_majority(deltas)
    total = surviving.sum(0)
    return (deltas * surviving).sum(0) / torch.where(total == 0, 1, total)


def _with_the_majority(deltas: Tensor) -> Tensor:
    """Where a delta has its sum's sign, a sum of 0 counting as positive."""
    return deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)


paper = Variant(_as_in_the_paper)
mergekit = Variant(_as_in_mergekit, least=LEAST)
authors_code = Variant(_as_in_the_authors_code)

"""VaRM and SCE have one form: select positions, share out by energy, combine. Streamed, a piece of a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.merging.deltas import Inputs
from fuserl.merging.threshold import Threshold, k_largest
from fuserl.merging.units import Energies, Unit, shares


class Variant(NamedTuple):
    """What a method does with deltas, selected positions and shares."""

    combine: Callable[[Float[Tensor, "J c"], Bool[Tensor, " c"] | None, Tensor], Float[Tensor, " c"]]
    least: float = 0.0  # mean energy, summed over the experts, below which all have equal shares


@dataclass
class Merged:
    """A tensor that comes out in pieces; its coefficients are known when the last one has come."""

    pieces: Iterator[Float[Tensor, " c"]]
    coefficients: Callable[[], Sequence[float] | None]  # of each expert: the mean over the elements; None: it has none


@runtime_checkable
class Method(Protocol):
    """How one tensor of each model becomes one."""

    def require(self, num_experts: int) -> None:
        """Raises: FuserlError: it cannot work with so many."""
        ...

    def pool(self, name: str) -> str | None:
        """The unit that a tensor shares its coefficients with; None: the tensor needs no other."""
        ...

    def energies(self, inputs: Inputs) -> Energies:
        """What the unit of a tensor must know of it before any tensor of the unit is merged."""
        ...

    def merge(self, inputs: Inputs, energies: Energies | None) -> Merged:
        """The merged tensor; `energies` are those of its unit, if it has one."""
        ...


@dataclass(frozen=True)
class Weighted:
    """Select the positions where experts differ most, share out by what is left of their energy, combine.

    Args:
        select: share of the positions whose variance over the experts is not zero, (0, 1]; 1 selects all.
    """

    variant: Variant
    unit: Unit
    select: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.select, bool) or not isinstance(self.select, (int, float)) or not 0 < self.select <= 1:
            raise FuserlError(
                f"`select` is {self.select!r}", where="`merge.select`", hint="it must be a share above 0 and up to 1"
            )

    def require(self, num_experts: int) -> None:
        """Raises: FuserlError: one expert alone has no variance to select by."""
        if num_experts < 2 and self.select < 1:
            raise FuserlError(
                "one expert alone does not vary, so that nothing would be selected",
                where="`experts`, `merge.select`",
                hint="give two experts or more, or `merge.select=1`",
            )

    def pool(self, name: str) -> str | None:
        """As the unit says."""
        return self.unit.pool(name)

    def energies(self, inputs: Inputs) -> Energies:
        """Sums of the selected squares."""
        return self._energies(inputs, self._threshold(inputs))

    def merge(self, inputs: Inputs, energies: Energies | None) -> Merged:
        """Base plus what the variant makes of the deltas."""
        threshold = self._threshold(inputs)
        of_unit = energies or self._energies(inputs, threshold)
        told = torch.zeros(len(inputs.experts), dtype=torch.float64)

        def pieces() -> Iterator[Tensor]:
            """Merged parts, in order; the experts' shares are summed on the way."""
            for base, deltas, mask in self._masked(inputs, threshold):
                squares = selected(deltas, mask).square()
                eta = shares(self.unit.mean_energies(squares, of_unit), self.variant.least)
                told.add_(eta.double().mean(1) * (len(base) / inputs.elements))
                yield self.variant.combine(deltas, mask, eta).add_(base)

        return Merged(pieces(), told.tolist)

    def _threshold(self, inputs: Inputs) -> Threshold | None:
        """Of the selected positions; None selects all."""
        if self.select >= 1:
            return None
        return k_largest(
            lambda: (variance(deltas) for _, deltas in inputs.pieces()), partial(taken, self.select), inputs.dtype
        )

    def _masked(self, inputs: Inputs, threshold: Threshold | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(base, deltas, mask) of every piece."""
        ties = threshold.ties if threshold else 0
        for base, deltas in inputs.pieces():
            mask = None
            if threshold:
                mask, ties = threshold.mask(variance(deltas), ties)
            yield base, deltas, mask

    def _energies(self, inputs: Inputs, threshold: Threshold | None) -> Energies:
        squares = torch.zeros(len(inputs.experts), dtype=torch.float64)
        for _, deltas, mask in self._masked(inputs, threshold):
            squares += selected(deltas, mask).square().sum(1)
        return self.unit.energies(squares, inputs.elements)


def taken(select: float, varying: int) -> int:
    """How many positions are selected of so many that vary: rounded down, in single precision, as both released codes do."""
    return int(torch.tensor(varying) * select)


def variance(deltas: Float[Tensor, " J *n"]) -> Float[Tensor, "*n"]:
    """Population variance over the experts, exactly zero where all are equal (Welford's recurrence).

    >>> variance(torch.tensor([[1.0, 0.1], [3.0, 0.1]]))
    tensor([1., 0.])
    """
    mean, squares = deltas[0].clone(), torch.zeros_like(deltas[0])
    for number, delta in enumerate(deltas[1:], 2):
        gap = delta - mean
        mean.add_(gap, alpha=1 / number)
        squares.addcmul_(gap, delta - mean)
    return squares.div_(len(deltas))


def selected(deltas: Tensor, mask: Tensor | None) -> Tensor:
    """Zero elsewhere."""
    return deltas if mask is None else deltas.masked_fill(~mask, 0)

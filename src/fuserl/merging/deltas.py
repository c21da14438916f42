"""One tensor of each model, and what the experts have learnt since the base, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fuserl.errors import FuserlError

PIECE = 1 << 17  # elements: a piece of all models stays in a processor's cache
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes as a float


@dataclass(frozen=True)
class Inputs:
    """One tensor of every model, as stored; all of one shape. The fields `base` and `experts` may be mapped files."""

    name: str
    base: Tensor
    experts: Sequence[Tensor]
    labels: Sequence[str] = ()  # of the experts, for messages
    piece: int = PIECE

    @property
    def shape(self) -> torch.Size:
        """Of every one of them."""
        return self.base.shape

    @property
    def elements(self) -> int:
        """Of one of them."""
        return self.base.numel()

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float32, or float64 where a model has that."""
        doubles = any(tensor.dtype == torch.float64 for tensor in (self.base, *self.experts))
        return torch.float64 if doubles else torch.float32

    def pieces(self) -> Iterator[tuple[Float[Tensor, " c"], Float[Tensor, "J c"]]]:
        """The base and the deltas of every expert, so many elements at a time, in the order of memory."""
        base, experts = self.base.reshape(-1), [tensor.reshape(-1) for tensor in self.experts]
        for start in range(0, self.elements, self.piece):
            part = slice(start, start + self.piece)
            here = base[part].to(self.dtype)
            yield here, torch.stack([expert[part].to(self.dtype) for expert in experts]).sub_(here)

    def require_finite(self) -> None:
        """No model has a hole here.

        Raises:
            FuserlError: one holds NaN or infinity.
        """
        labels = ["the base", *(f"`{label}`" for label in self.labels or range(len(self.experts)))]
        for label, tensor in zip(labels, (self.base, *self.experts), strict=True):
            flat = tensor.reshape(-1)
            for start in range(0, self.elements, self.piece):
                if not finite(flat[start : start + self.piece]):
                    raise FuserlError(
                        f"{label} has NaN or infinity in the tensor `{self.name}`",
                        where=f"`{self.name}`",
                        hint="this checkpoint is broken (a training run that diverged, say): leave it out or take an earlier one",
                    )


def finite(numbers: Float[Tensor, " n"]) -> bool:
    """Whether no number is NaN or infinite: their exponents alone are all ones, and the largest bits without a sign.

    Of half-precision numbers on a processor this is many times faster than `isfinite`.

    >>> finite(torch.tensor([3e38, -1.0])), finite(torch.tensor([1.0, float("-inf")]))
    (True, False)
    """
    if not len(numbers):
        return True
    integer = INTEGERS[numbers.element_size()]
    infinity = torch.tensor(torch.inf, dtype=numbers.dtype).view(integer)
    return bool((numbers.view(integer) & torch.iinfo(integer).max).max() < infinity)

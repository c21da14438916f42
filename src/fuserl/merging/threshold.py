"""The k largest of many numbers that are seen a piece at a time, exactly, without holding or sorting them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DIGIT = 16  # bits that one look at the numbers decides
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Threshold:
    """The k largest: all above `value`, and the first `ties` of those that equal it."""

    value: float
    ties: int

    def mask(self, piece: Float[Tensor, " c"], ties: int) -> tuple[Bool[Tensor, " c"], int]:
        """Which elements of a piece belong to the k largest.

        Args:
            ties: how many that equal the value are still to be taken, as the piece before left them.

        Returns:
            The mask, and how many are still to be taken.
        """
        mask = piece > self.value
        if ties:
            equal = (piece == self.value).nonzero().flatten()[:ties]
            mask[equal] = True
            ties -= len(equal)
        return mask, ties


def k_largest(
    pieces: Callable[[], Iterable[Float[Tensor, " _"]]], how_many: Callable[[int], int], dtype: torch.dtype
) -> Threshold:
    """The threshold of the k largest of numbers that are not negative.

    Bits of such floats are ordered as they are, so the k-th largest is found digit by digit, from counts alone: two looks
    at numbers of 32 bits, four at those of 64.

    Args:
        pieces: gives all numbers, every time it is called.
        how_many: k, from how many numbers are not zero.
        dtype: of the numbers, float32 or float64.
    """
    prefix, above, k = 0, 0, None  # leading digits of the k-th largest; how many are larger
    for shift in range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT):
        counts, positive = torch.zeros(1 << DIGIT, dtype=torch.long), 0
        for piece in pieces():
            bits = piece.view(INTEGERS[dtype])
            if k is None:
                positive += int(torch.count_nonzero(bits))
            else:
                bits = bits[(bits >> (shift + DIGIT)) == prefix]
            counts += torch.bincount(((bits >> shift) & ((1 << DIGIT) - 1)).long(), minlength=1 << DIGIT)
        k = min(how_many(positive), int(counts.sum())) if k is None else k
        if k <= 0:
            return Threshold(float("inf"), 0)
        at_least = counts.flip(0).cumsum(0).flip(0)  # of numbers with this digit or a larger one
        digit = int((at_least >= k - above).sum()) - 1
        above += int(at_least[digit] - counts[digit])
        prefix = (prefix << DIGIT) | digit
    assert k is not None
    return Threshold(torch.tensor(prefix, dtype=INTEGERS[dtype]).view(dtype).item(), k - above)

"""The table of dynamic time warping without a loop over its cells, for several texts at once, and the way back through it.

With S the running sum of a row's costs and u[j] = min(D[i-1, j-1], D[i-1, j]), the row is

    D[i, j] = S[j] + min over k <= j of (u[k] - S[k-1])

which numpy has as `minimum.accumulate`; all are integers, so nothing is rounded. Texts are computed together, one after
the other in a row: each is set higher than the one before it by more than any two values differ, so that its u - S is lower and
no minimum crosses over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from fuserl.distributions.alignment import Alignment


class Room:
    """Memory that is used again: a fresh page costs more than what is written on it."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array that holds anything; the next one of that name takes its place."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.size < size:
            held = self._held[name] = np.empty(size, dtype=dtype)
        return held[:size].reshape(shape)


def accumulated(blocks: Sequence[tuple[np.ndarray, np.ndarray]], room: Room) -> Int[np.ndarray, "rows texts columns"]:
    """D of every text; what lies outside of a text's own rows and columns means nothing.

    Args:
        blocks: of each text the costs of its different tokens, [different, columns], and which row each of them is.
    """
    rows, columns = max(len(order) for _, order in blocks), max(costs.shape[1] for costs, _ in blocks)
    highest = max(int(costs.max()) for costs, _ in blocks) + 1
    apart = 2 * (rows + columns + 1) * highest  # more than any two values differ
    dtype = np.int32 if apart * (len(blocks) + 1) < 2**31 else np.int64
    shape = (rows, len(blocks), columns)
    upto, before = (room.array(name, shape, dtype) for name in ("upto", "before"))
    for place, (costs, order) in enumerate(blocks):
        sums = np.cumsum(costs, axis=1, dtype=dtype)
        sums += apart * place
        for full in (upto, before):
            full[: len(order), place, : costs.shape[1]] = sums[order]
            full[len(order) :, place] = full[: len(order), place, costs.shape[1] :] = apart * place
            sums = sums - costs
    result = room.array("result", (rows, len(blocks) * columns), dtype)
    result[0] = (upto[0] - apart * np.arange(len(blocks), dtype=dtype)[:, None]).reshape(-1)
    upto, before = upto.reshape(rows, -1), before.reshape(rows, -1)
    least = np.empty(len(blocks) * columns, dtype=dtype)
    for row in range(1, rows):
        above = result[row - 1]
        np.minimum(above[1:], above[:-1], out=least[1:])
        least[::columns] = above[::columns]
        np.subtract(least, before[row], out=least)
        np.minimum.accumulate(least, out=least)
        np.add(least, upto[row], out=result[row])
    return result.reshape(rows, len(blocks), columns)


def traced(distances: Int[np.ndarray, "rows texts columns"], place: int, rows: int, columns: int) -> Alignment:
    """The way back through one text's D, from its last cell to the first; diagonal before left before up."""
    read, stride = memoryview(distances.reshape(-1)), distances.shape[1] * distances.shape[2]
    row, column = rows - 1, columns - 1
    cell = row * stride + place * distances.shape[2] + column
    first, last = [0] * columns, [0] * columns
    last[column] = row
    while row and column:
        diagonal, left, up = read[cell - stride - 1], read[cell - 1], read[cell - stride]
        if diagonal <= left and diagonal <= up:
            first[column] = row
            row, column, cell = row - 1, column - 1, cell - stride - 1
            last[column] = row
        elif left <= up:
            first[column] = row
            column, cell = column - 1, cell - 1
            last[column] = row
        else:
            row, cell = row - 1, cell - stride
    return Alignment(np.array(first, dtype=np.int32), np.array(last, dtype=np.int32), rows)

"""Dynamic time warping of texts whose table would be too large: the same path, in memory linear in the tokens.

The table is computed row by row. From the middle row on every cell carries the column at which its path back enters that
row. So one pass tells where the path crosses, and the two halves (left above it, right below it) are done in turn: together
half of the cells, so the whole is done in twice the time. Inside a half every least step is the same as in the whole
table: along the path values differ by a constant, beside it they can only be larger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuserl.distributions.warping import Room, accumulated, traced

ROWS = 64  # of costs that are held at once
Block = Callable[[int, int, int, int], np.ndarray]  # (top, bottom, left, right) -> costs [rows, columns]


def long_path(block: Block, shape: tuple[int, int], largest: int) -> np.ndarray:
    """The path, [matches, 2].

    Args:
        block: part of the table of costs.
        shape: of that table.
        largest: cells of a part that is computed as a whole.
    """
    path: list[tuple[int, int]] = []
    room = Room()
    todo = [(0, shape[0] - 1, 0, shape[1] - 1)]  # corners, inclusive; the last is done first
    while todo:
        top, bottom, left, right = todo.pop()
        rows, columns = bottom - top + 1, right - left + 1
        if rows * columns <= largest or rows <= 2:
            costs = block(top, bottom + 1, left, right + 1)
            table = accumulated([(costs, np.arange(rows))], room)
            path += [(top + row, left + column) for row, column in traced(table, 0, rows, columns).path().tolist()]
            continue
        middle = (top + bottom) // 2
        crossing = left + _crossing(block, (top, bottom, left, right), middle)
        todo += [(middle, bottom, crossing, right), (top, middle, left, crossing)]
    kept = [place for number, place in enumerate(path) if not number or place != path[number - 1]]
    return np.array(kept, dtype=np.int64)


def _crossing(block: Block, corners: tuple[int, int, int, int], middle: int) -> int:
    """The largest column of the path in the middle row, counted from the left corner."""
    top, bottom, left, right = corners
    places = np.arange(right - left + 1)
    above = entered = np.zeros(0, dtype=np.int64)
    for start in range(top, bottom + 1, ROWS):
        for number, costs in enumerate(block(start, min(start + ROWS, bottom + 1), left, right + 1).astype(np.int64)):
            row, sums = start + number, np.cumsum(costs)
            if row == top:
                above = sums
                continue
            diagonal = np.append(np.iinfo(np.int64).max // 2, above[:-1])
            values = sums + np.minimum.accumulate(np.minimum(diagonal, above) - (sums - costs))
            if row == middle + 1:
                entered = places
            if row > middle:
                entered = _carried(values, diagonal, above, entered, places)
            above = values
    return int(entered[-1])


def _carried(
    values: np.ndarray, diagonal: np.ndarray, above: np.ndarray, entered: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Where the path back from each cell of this row enters the middle one, from where those of the row above do."""
    before = np.append(np.iinfo(np.int64).max // 2, values[:-1])
    goes_left = (before < diagonal) & (before <= above)
    goes_up = np.maximum.accumulate(np.where(goes_left, 0, places))  # where the path leaves this row
    return entered[np.where(diagonal[goes_up] <= above[goes_up], goes_up - 1, goes_up)]

"""Two tokenisations of one text, token for token: what dynamic time warping and the offset aligner find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

Ids = Sequence[int] | Int[np.ndarray, "_"]  # token ids of a text


@dataclass(frozen=True)
class Alignment:
    """For every token of the target the run of source tokens that it is matched with; it may have none."""

    first: Int[np.ndarray, " target"]  # position among the source's tokens
    last: Int[np.ndarray, " target"]  # the last one; before `first` where there is none
    num_source: int  # tokens of the source

    @property
    def counts(self) -> Int[np.ndarray, " target"]:
        """How many source tokens each target token is matched with."""
        return np.maximum(self.last - self.first + 1, 0)

    def path(self) -> Int[np.ndarray, "matches 2"]:
        """All matches (source position, target position), in order: of dynamic time warping, its path."""
        counts = self.counts
        target = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([np.repeat(self.first, counts) + within, target], axis=1)

    def runs(self) -> Int[np.ndarray, "runs 4"]:
        """The smallest pieces that no match leaves: (source start, source end, target start, target end) of each.

        Target tokens without a source token, and source tokens without a target token, belong to no run.
        """
        matched = np.flatnonzero(self.counts)
        if not len(matched):
            return np.zeros((0, 4), dtype=np.int64)
        first, last = self.first[matched], np.maximum.accumulate(self.last[matched])
        opens = np.append(True, first[1:] > last[:-1])
        closes = np.append(opens[1:], True)
        return np.stack([first[opens], last[closes] + 1, matched[opens], matched[closes] + 1], axis=1).astype(np.int64)


def of_path(path: Int[np.ndarray, "matches 2"], num_source: int, num_target: int) -> Alignment:
    """The alignment whose matches are these, ordered by source and target position."""
    first = np.zeros(num_target, dtype=np.int32)
    last = np.full(num_target, -1, dtype=np.int32)
    first[path[::-1, 1]] = path[::-1, 0]  # of several the last that is written stays
    last[path[:, 1]] = path[:, 0]
    return Alignment(first, last, num_source)

"""The string of least edit distance in a long list, exactly, without comparing all with all.

Nearly all tokens have a neighbour at distance 1, and those are found in tables: of the strings with a letter left out, and with
a letter masked. For the rest a distance of at most d is looked for among strings whose lengths differ by at most d.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

CELLS = 1 << 22  # distances that are held at once
LIMITS = (2, 3, 5)  # distances that are looked for before all strings are compared


def nearest(wanted: Sequence[str], among: Sequence[str]) -> Int[np.ndarray, " wanted"]:
    """Place of the nearest string for each; ties to the first.

    >>> nearest(["grammar"], ["gram", "grammer", "hammer"]).tolist()
    [1]
    """
    found = np.full(len(wanted), -1, dtype=np.int32)
    tables = _Tables(among)
    for place, text in enumerate(wanted):
        found[place] = tables.find(text)
    lengths = np.array([len(text) for text in among])
    whole = max([0, *map(len, wanted), *lengths.tolist()])
    for limit in (*LIMITS, whole):
        for length, places in _by_length(wanted, np.flatnonzero(found < 0).tolist()):
            near = np.flatnonzero(np.abs(lengths - length) <= limit)
            _search(wanted, among, places, near, limit, found)
    return found


class _Tables:
    """What lies at distance 0 and 1, by text: always the first string that does."""

    def __init__(self, among: Sequence[str]) -> None:
        self.same: dict[str, int] = {}
        self.shorter: dict[str, int] = {}  # a letter left out
        self.masked: dict[str, int] = {}  # a letter left out, and where
        for place, text in enumerate(among):
            self.same.setdefault(text, place)
            for rest, mask in _left_out(text):
                self.shorter.setdefault(rest, place)
                self.masked.setdefault(mask, place)

    def find(self, text: str) -> int:
        """The first string of distance 0, else of distance 1, else -1."""
        if text in self.same:
            return self.same[text]
        places = [self.shorter.get(text, -1)]
        for rest, mask in _left_out(text):
            places += self.same.get(rest, -1), self.masked.get(mask, -1)
        return min((place for place in places if place >= 0), default=-1)


def _left_out(text: str) -> Iterator[tuple[str, str]]:
    for at in range(len(text)):
        rest = text[:at] + text[at + 1 :]
        yield rest, f"{at} {rest}"


def _by_length(texts: Sequence[str], places: Iterable[int]) -> list[tuple[int, list[int]]]:
    groups: dict[int, list[int]] = {}
    for place in places:
        groups.setdefault(len(texts[place]), []).append(place)
    return sorted(groups.items())


def _search(
    wanted: Sequence[str], among: Sequence[str], places: list[int], near: np.ndarray, limit: int, found: np.ndarray
) -> None:
    """Fill in those that have a string within the limit."""
    if not len(near):
        return
    others = [among[place] for place in near.tolist()]
    dtype = np.uint8 if limit < 254 else np.int32
    step = max(1, CELLS // len(near))
    for start in range(0, len(places), step):
        some = np.array(places[start : start + step])
        texts = [wanted[place] for place in some.tolist()]
        distances = cdist(texts, others, scorer=Levenshtein.distance, score_cutoff=limit, dtype=dtype)
        best = distances.argmin(axis=1)
        within = distances[np.arange(len(some)), best] <= limit
        found[some[within]] = near[best[within]]

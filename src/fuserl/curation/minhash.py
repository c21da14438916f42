"""MinHash: which of a million sets may be alike, without comparing them all.

A set's signature is the smallest of its members' hashes under each of many permutations. Two sets of Jaccard similarity
J agree in one place of the signature with probability J, so in all r places of a band with J^r, and in at least one of
b bands with 1 - (1 - J^r)^b. Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from fuserl.curation.shingles import Hashes, Runs, mixed
from fuserl.errors import FuserlError

BLOCK = 256  # sets whose signatures are computed together: their hashes stay in a processor's cache


@dataclass(frozen=True)
class Bands:
    """How a signature is cut."""

    bands: int
    rows: int  # of a band

    def chance(self, similarity: float) -> float:
        """That two sets of this similarity agree in a band.

        >>> round(Bands(18, 7).chance(0.8), 3)
        0.986
        """
        return 1 - (1 - similarity**self.rows) ** self.bands


def bands_for(threshold: float, num_perm: int, recall: float) -> Bands:
    """As many rows a band as possible, because they spare comparisons, while pairs at the threshold are found.

    Raises:
        FuserlError: so few permutations cannot find so large a share of them.

    >>> bands_for(0.8, 128, 0.98)
    Bands(bands=18, rows=7)
    """
    for rows in range(num_perm, 0, -1):
        bands = Bands(num_perm // rows, rows)
        if bands.chance(threshold) >= recall:
            return bands
    raise FuserlError(
        f"{num_perm} permutations find {Bands(num_perm, 1).chance(threshold):.0%} of the pairs at a threshold of {threshold}",
        where="`num_perm`, `threshold` and `recall` of a rule for near duplicates",
        hint="raise `num_perm` or `threshold`, or ask for less `recall`",
    )


def signatures(sets: Runs, num_perm: int) -> UInt32[np.ndarray, "places sets"]:
    """The smallest member of every set under each permutation a * x + b modulo 2^32, a odd.

    Args:
        sets: none of them empty; members may be repeated.
    """
    factors, shifts = _permutations(num_perm)
    members = (sets.hashes >> np.uint64(32)).astype(np.uint32)
    found = np.empty((num_perm, len(sets.starts) - 1), np.uint32)
    permuted = np.empty_like(members)
    for place, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
        np.multiply(members, factor, out=permuted)
        np.add(permuted, shift, out=permuted)
        np.minimum.reduceat(permuted, sets.starts[:-1], out=found[place])
    return found


def _permutations(count: int) -> UInt32[np.ndarray, "2 count"]:
    """Always the same: what is found must not depend on a seed."""
    drawn = (mixed(np.arange(1, 2 * count + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32).reshape(2, count)
    drawn[0] |= np.uint32(1)
    return drawn


def band_keys(sets: Runs, cut: Bands) -> UInt64[np.ndarray, "sets bands"]:
    """A number for every band of every set's signature, equal where the band is.

    Args:
        sets: none of them empty.
    """
    keys = np.empty((len(sets.starts) - 1, cut.bands), np.uint64)
    for first in range(0, len(keys), BLOCK):
        starts = sets.starts[first : first + BLOCK + 1]
        part = Runs(sets.hashes[starts[0] : starts[-1]], starts - starts[0])
        signature = signatures(part, cut.bands * cut.rows).astype(np.uint64).reshape(cut.bands, cut.rows, -1)
        key = np.zeros((cut.bands, len(starts) - 1), np.uint64)
        for row in range(cut.rows):
            key = mixed(key + signature[:, row] + np.uint64(1))
        keys[first : first + BLOCK] = key.T
    return keys


def buckets(keys: UInt64[np.ndarray, " sets"], order: Int64[np.ndarray, " some"]) -> Iterator[list[int]]:
    """Sets that share a key, two or more together, each bucket in the given order."""
    sets = order[np.argsort(keys[order], kind="stable")]
    begins = np.flatnonzero(np.append(True, np.diff(keys[sets]) != 0)) if len(sets) else np.empty(0, np.int64)
    sizes = np.diff(np.append(begins, len(sets)))
    for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield sets[begin : begin + size].tolist()


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared members / all members, of sets given as ascending arrays without repetitions."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)


class Clusters:
    """Sets of numbers that grow together (union-find); the root is the smallest, so the order of joining is no matter."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def root(self, member: int) -> int:
        """The smallest of its cluster."""
        above = self._above
        while above[member] != member:
            above[member] = member = above[above[member]]
        return member

    def join(self, one: int, other: int) -> int:
        """Make one cluster of two; its root."""
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low
        return low

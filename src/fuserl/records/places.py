"""Where the record of each key begins in a journal: 24 bytes a key, however many there are."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

FEW = 1 << 16  # keys that are kept in a dictionary before they are laid to the sorted ones


class Places:
    """Key -> offset in bytes. Keys are known by 128 bits of their hash; the first offset of a key stays."""

    def __init__(self) -> None:
        none = np.empty(0, dtype=np.uint64)
        self._sorted = none, none, np.empty(0, dtype=np.int64)  # halves of the hashes, sorted by both; offsets
        self._recent: dict[bytes, int] = {}  # hash -> offset; none of these is among the sorted ones

    def __len__(self) -> int:
        return len(self._sorted[2]) + len(self._recent)

    def find(self, key: str) -> int | None:
        """The offset of a key, None where it has none."""
        digest = _digest(key.encode())
        found = self._recent.get(digest)
        return self._sorted_offset(digest) if found is None else found

    def add(self, key: str, offset: int) -> None:
        """Remember a key that `find` does not find."""
        self._recent[_digest(key.encode())] = offset
        if len(self._recent) > max(FEW, len(self._sorted[2]) // 8):
            self._lay(b"".join(self._recent), array("q", self._recent.values()))
            self._recent = {}

    def add_all(self, keys: Filling) -> None:
        """Remember many at once; repetitions are ignored."""
        self._lay(bytes(keys.digests), keys.offsets)

    def _sorted_offset(self, digest: bytes) -> int | None:
        highs, lows, offsets = self._sorted
        high, low = np.frombuffer(digest, dtype=np.uint64)
        place = int(highs.searchsorted(high))
        while place < len(highs) and highs[place] == high:
            if lows[place] == low:
                return int(offsets[place])
            place += 1
        return None

    def _lay(self, digests: bytes, offsets: array[int]) -> None:
        """Sort new keys in among the old."""
        halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        new = halves[:, 0], halves[:, 1], np.frombuffer(offsets, dtype=np.int64)
        high, low, offset = (np.concatenate(pair) for pair in zip(self._sorted, new, strict=True))
        order = np.lexsort((low, high))  # stable: of equal keys the first comes first
        high, low, offset = high[order], low[order], offset[order]
        first = np.ones(len(high), dtype=bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self._sorted = high[first], low[first], offset[first]


class Filling:
    """Keys gathered for `Places.add_all`, 24 bytes each."""

    def __init__(self) -> None:
        self.digests, self.offsets = bytearray(), array("q")

    def add(self, key: bytes, offset: int) -> None:
        """One more."""
        self.digests += _digest(key)
        self.offsets.append(offset)


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()

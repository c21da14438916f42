"""Hashes of words and of runs of words, of many texts at a time, and a file that holds them.

A run of n words (a shingle, an n-gram) is a 64-bit number. The numbers depend on the words alone: they are the same in
every process, on every machine, and two different runs share one about as often as two random numbers do. All texts
of a batch are hashed together by a polynomial over prefix sums, so a word costs some twenty array operations a batch
and no Python.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt64

from fuserl.curation.texts import DIGITS, NOTHING, SYMBOL, kinds
from fuserl.errors import FuserlError

BATCH = 1 << 17  # characters hashed together: what their arrays need stays in a processor's cache
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
Kept = TypeVar("Kept")
Hashes = UInt64[np.ndarray, " _"]
Places = Int64[np.ndarray, " _"]


class Runs(NamedTuple):
    """Hashes of several texts, one text after the other."""

    hashes: Hashes
    starts: Places  # of each text's hashes, and the end of the last: one more than texts


class Words(NamedTuple):
    """The words of several texts."""

    hashes: Hashes
    starts: Places  # as in `Runs`
    numbers: Hashes  # a text: of all its numbers, in whatever order; 0 for none


def mixed(values: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """Every bit of the result depends on every bit of the value; one-to-one (MurmurHash3's finalizer)."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _powers(base: np.uint64, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)


def spans(
    values: Hashes, begins: Int64[np.ndarray, " spans"], ends: Int64[np.ndarray, " spans"]
) -> UInt64[np.ndarray, " spans"]:
    """A hash of values[begin:end] for every span; it depends on the values and their order, not on where they stand."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values + np.uint64(1)) * _powers(_BASE, len(values)), out=sums[1:])
    return mixed((sums[ends] - sums[begins]) * _powers(_INVERSE, len(values) + 1)[begins])


def hashed_words(texts: Sequence[str], *, symbols: bool = True) -> Words:
    """The words of normalised texts, as `texts.words` finds them.

    Args:
        symbols: count symbols as words; otherwise they only separate.
    """
    joined = "".join(f"{text}\n" for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = kinds()[codes]
    first = np.ones(len(kind), bool)
    np.not_equal(kind[1:], kind[:-1], out=first[1:])
    first |= kind >= SYMBOL  # symbols and ideographs stand alone
    begins = np.flatnonzero(first)
    ends = np.append(begins[1:], len(kind))
    kind = kind[begins]
    wanted = (kind != NOTHING) if symbols else (kind != NOTHING) & (kind != SYMBOL)
    begins, ends, kind = begins[wanted], ends[wanted], kind[wanted]
    hashes = spans(codes.astype(np.uint64), begins, ends)
    lines = np.cumsum([0, *(len(text) + 1 for text in texts)])
    starts = np.searchsorted(begins, lines)
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(np.where(kind == DIGITS, mixed(hashes), np.uint64(0)), out=sums[1:])
    return Words(hashes, starts, sums[starts[1:]] - sums[starts[:-1]])


def runs(words: Words, length: int) -> Runs:
    """Every run of so many words; a text that has fewer is one run, one without words has none."""
    counts = np.diff(words.starts)
    counts = np.where(counts >= length, counts - length + 1, np.minimum(counts, 1))
    starts = np.concatenate([[0], np.cumsum(counts)])
    begins = np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], counts)
    ends = np.minimum(begins + length, np.repeat(words.starts[1:], counts))
    return Runs(spans(words.hashes, begins, ends), starts)


def batches(texts: Iterable[tuple[str, Kept]]) -> Iterator[list[tuple[str, Kept]]]:
    """Texts with what belongs to them, about `BATCH` characters together."""
    held: list[tuple[str, Kept]] = []
    signs = 0
    for text, kept in texts:
        held.append((text, kept))
        signs += len(text)
        if signs >= BATCH:
            yield held
            held, signs = [], 0
    if held:
        yield held


class Spool:
    """Hashes of texts in a file without a name, which is gone when the process is; in memory eight bytes a text.

    Args:
        folder: on a disk with 8 bytes for every word; None: the system's folder for such files (TMPDIR).

    Raises:
        FuserlError: the file cannot be made or written.
    """

    def __init__(self, folder: str | None) -> None:
        self._ends = array("q", [0])  # in hashes
        self._folder = folder or tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (`close`)
        except OSError as error:
            raise self._told(error) from error

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, runs: Runs) -> None:
        """Append the texts of a batch."""
        content = memoryview(runs.hashes.tobytes())
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise self._told(error) from error
        self._ends.extend((self._ends[-1] + runs.starts[1:]).tolist())

    def read(self, first: int, last: int) -> Runs:
        """Texts first to last, the last not included."""
        begin, end = self._ends[first], self._ends[last]
        content, parts = 8 * (end - begin), []
        while content:
            parts.append(os.pread(self._file.fileno(), content, 8 * end - content))
            content -= len(parts[-1])
        starts = np.array(self._ends[first : last + 1]) - begin
        return Runs(np.frombuffer(b"".join(parts), np.uint64), starts)

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """(first, last) of parts that have together all texts, each with so many hashes at most, or with one text."""
        first = 0
        for last in range(1, len(self) + 1):
            if last == len(self) or self._ends[last + 1] - self._ends[first] > size:
                yield first, last
                first = last

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def _told(self, error: OSError) -> FuserlError:
        return FuserlError(
            f"the hashes of the texts cannot be kept: {error.strerror or error}",
            where=self._folder,
            hint="8 bytes a word are needed; name a folder on a larger disk with `TMPDIR`",
        )

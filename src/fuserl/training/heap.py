"""How a processor's memory is handed out: a simulation of glibc's heap, whose holes a run pays for as well."""

from __future__ import annotations

from bisect import bisect_left, insort

LARGEST = 32 * 2**20  # bytes; larger blocks are mapped one by one and go back to the system
TRIM = 2 * LARGEST  # bytes free at the top, from which on it goes back
SLIVER = 64 + 32  # asked for on top of a block, to find a place in it that is aligned to 64 bytes
# Share of the slivers that small objects settle in, chosen so that measured runs are met (benchmarks/plan_memory.py).
LIVED_IN = 0.6
LIVED_IN_BESIDE_ADAPTERS = 0.8  # their many small products leave more of them


class Heap:
    """Best fit, neighbours joined; blocks are numbered by whoever asks.

    While a graph grows, its small objects settle in the slivers beside blocks and stay as long as it does. Then a block's hole
    stays apart from the next one and is too small for the same size again: a forward pass that keeps some blocks and
    frees others leaves holes.

    Args:
        lived_in: share of the slivers.
    """

    def __init__(self, lived_in: float) -> None:
        self.lived_in, self.settlers = lived_in, 0.0
        self.top = 0
        self.grows = False  # does a graph?
        self.at: dict[int, tuple[int, int]] = {}  # block -> start, size with its sliver
        self.holes: list[tuple[int, int]] = []  # size, start; sorted
        self.begins: dict[int, int] = {}  # hole's start -> size
        self.ends: dict[int, int] = {}  # hole's end -> start
        self.slivers: list[int] = []  # starts of those that are lived in

    def take(self, block: int, size: int) -> None:
        """Room for a block."""
        size += SLIVER
        found = bisect_left(self.holes, (size, 0))
        if found < len(self.holes):
            room, start = self.holes[found]
            self._close(start)
            if room > size:
                self._open(start + size, room - size)
        else:
            start, self.top = self.top, self.top + size
        self.at[block] = start, size

    def give(self, block: int) -> None:
        """Its room is a hole, joined with its neighbours."""
        start, size = self.at.pop(block)
        self.settlers += self.lived_in * self.grows
        if self.settlers >= 1:
            self.settlers -= 1
            size -= SLIVER
            self.slivers.append(start + size)
        self._free(start, size)

    def settle(self) -> None:
        """The graph goes, and what lived in slivers with it."""
        self.grows = False
        for start in self.slivers:
            self._free(start, SLIVER)
        self.slivers = []

    def _free(self, start: int, size: int) -> None:
        if (before := self.ends.get(start)) is not None:
            size += self._close(before)
            start = before
        if start + size in self.begins:
            size += self._close(start + size)
        if start + size == self.top and size >= TRIM:
            self.top = start
        else:
            self._open(start, size)

    def _open(self, start: int, size: int) -> None:
        insort(self.holes, (size, start))
        self.begins[start], self.ends[start + size] = size, start

    def _close(self, start: int) -> int:
        size = self.begins.pop(start)
        del self.ends[start + size]
        del self.holes[bisect_left(self.holes, (size, start))]
        return size

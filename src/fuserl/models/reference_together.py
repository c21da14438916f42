"""Filling the reference cache with a model that is cut up: all call it equally often, the first process keeps the books.

The packs are those of one process. A round gives every process a pack, or one to throw away where none is left; the first
process claims what a round computes, collects and writes it, so that a kill costs a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import all_gather, get_rank, get_world_size

from fuserl.models.reference import POLL, Wanted, Work, frozen
from fuserl.models.reference_cache import Entry, ReferenceCache, explained
from fuserl.models.sharding import first_ones
from fuserl.tokens.store import TokenStore

COMPUTE, WAIT, DONE = range(3)
Places = dict[bytes, tuple[int, int]]  # what is computed, and where it stands in the store


@torch.no_grad()
def fill_together(
    model: Any,
    store: TokenStore,
    used: np.ndarray,
    cache: ReferenceCache,
    *,
    max_tokens: int,
    score: Callable,
    truncate: int | None = None,
    per_token: Callable | None = None,
    waiting: Callable[[int], None] | None = None,
) -> np.ndarray:
    """See `reference.fill`: the same numbers, from a model that is cut up. All processes call it.

    Raises:
        FuserlError: the cache's disk is full or its file damaged.
    """
    started = time.perf_counter()
    wanted = Wanted.of(store, used, truncate)
    work = Work(model, store, cache, wanted, truncate, score, per_token)
    with explained("used", cache.path):
        books = _Books(work) if get_rank() == 0 else None
        missing = books.missing if books else np.zeros(len(wanted.unique), dtype=bool)
        missing = first_ones(torch.from_numpy(missing)).numpy()
        if missing.any():
            with books.cache.claiming() if books else nullcontext():
                _rounds(work, work.packs(missing, max_tokens), books, waiting)
        values = books.values() if books else np.zeros(len(wanted.unique))
        values = first_ones(torch.from_numpy(values)).numpy()
    cache.seconds += time.perf_counter() - started
    return wanted.table(values, used.shape)


class _Books:
    """What the first process knows of the cache."""

    def __init__(self, work: Work) -> None:
        self.work, self.cache = work, work.cache
        unique = work.wanted.unique
        remembered = None if work.per_token else self.cache.recall(work.wanted.digest)
        if remembered is None:
            self.known = self.cache.get(unique, with_tokens=work.per_token is not None)
        else:
            self.known = dict(zip(unique, remembered.tolist(), strict=True))
        self.cache.hits += len(self.known)
        self.missing = np.array([key not in self.known for key in unique], dtype=bool)
        self.remembered = remembered is not None

    def values(self) -> np.ndarray:
        """[unique], when all are known; remembered for the next job."""
        values = np.array([self.known[key] for key in self.work.wanted.unique])
        if not self.remembered:
            self.cache.remember(self.work.wanted.digest, values)
        return values

    def take(self, todo: list[Places], count: int) -> list[Places]:
        """Claim for up to `count` packs what of them is free; what is known in full leaves `todo`."""
        taken, left = [], []
        for place, pack in enumerate(todo):
            if len(taken) == count:
                left += todo[place:]
                break
            rest = [key for key in pack if key not in self.known]
            claimed = self.cache.claim(rest, with_tokens=self.work.per_token is not None)
            self.known.update(claimed.known)
            self.cache.hits += len(claimed.known)
            if claimed.mine:
                taken.append({key: pack[key] for key in rest if key in claimed.mine})
            if any(key not in self.known for key in pack):
                left.append(pack)  # looked at again when these are computed
        todo[:] = left
        return taken

    def enter(self, entries: list[Entry]) -> None:
        """Write what a round has computed; what stands counts, should another job have been faster."""
        self.cache.put(entries)
        self.cache.misses += len(entries)
        self.known.update(self.cache.get([entry.key for entry in entries]))


def _rounds(work: Work, packs: list[Places], books: _Books | None, waiting: Callable | None) -> None:
    """Until the first process knows all; every process computes as many packs as every other."""
    todo, order = list(packs), [place for pack in packs for place in pack.items()]
    was_training = work.model.training
    work.model.eval()
    try:
        with frozen(work.model):
            while True:
                taken = books.take(todo, get_world_size()) if books else []
                state = first_ones(torch.tensor(COMPUTE if taken else WAIT if todo else DONE)).item()
                if state == DONE:
                    return
                if state == WAIT:
                    if books and waiting:
                        waiting(sum(key not in books.known for pack in todo for key in pack))
                        waiting = None
                    time.sleep(POLL)
                    continue
                mine = _mine(order, taken)
                found = work.entries(mine or dict(order[:1]))
                collected = _collected(_flat(found) if mine else torch.zeros(0, dtype=torch.float64))
                if books:
                    books.enter(
                        [entry for pack, flat in zip(taken, collected, strict=False) for entry in _read(pack, flat)]
                    )
    finally:
        work.model.train(was_training)


def _mine(order: list[tuple[bytes, tuple[int, int]]], taken: list[Places]) -> Places:
    """The first process shares out what it has taken: places in an order that all have."""
    longest = int(first_ones(torch.tensor(max(map(len, taken), default=0))))
    table = torch.full((get_world_size(), longest), -1)
    place_of = {key: place for place, (key, _) in enumerate(order)} if taken else {}
    for row, pack in enumerate(taken):
        table[row, : len(pack)] = torch.tensor([place_of[key] for key in pack])
    row = first_ones(table)[get_rank()]
    return dict(order[place] for place in row[row >= 0].tolist())


def _collected(mine: Tensor) -> list[Tensor]:
    """Every process's numbers, of which they have different counts."""
    counts = [torch.zeros(1, dtype=torch.long) for _ in range(get_world_size())]
    all_gather(counts, torch.tensor([len(mine)]))
    longest = max(map(int, counts))
    padded = [torch.zeros(longest, dtype=mine.dtype) for _ in counts]
    all_gather(padded, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
    return [flat[: int(count)] for flat, count in zip(padded, counts, strict=True)]


def _flat(entries: list[Entry]) -> Tensor:
    """Entries as numbers: sum, count, how wide log-probs a token are (0: none are kept), and they."""
    parts: list[np.ndarray] = []
    for entry in entries:
        tokens = np.zeros(0) if entry.tokens is None else entry.tokens
        width = 0 if entry.tokens is None else entry.tokens.itemsize
        parts += [np.array([entry.logps, entry.num_tokens, width], np.float64), tokens.astype(np.float64)]
    return torch.from_numpy(np.concatenate(parts))


def _read(pack: Places, flat: Tensor) -> list[Entry]:
    """What `_flat` wrote, under the keys of its pack."""
    numbers, at, entries = flat.numpy(), 0, []
    for key in pack:
        logps, count, width = numbers[at : at + 3]
        at += 3
        tokens = numbers[at : at + int(count)].astype(f"f{int(width)}") if width else None
        at += int(count) if width else 0
        entries.append(Entry(key, float(logps), int(count), tokens))
    return entries

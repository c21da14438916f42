"""The plan: which prompts make an optimiser step, in which pack, on which rank. Known before the first step.

Everything is a pure function of (seed, epoch, step): a resumed run goes on exactly, and no rank needs to ask another.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from fuserl.errors import FuserlError
from fuserl.tokens.store import TokenStore


@dataclass(frozen=True)
class Fitting:
    """Which groups fit, and why the others do not."""

    keep: np.ndarray  # rows of the store
    dropped: list[tuple[str, str]]  # (prompt id, why)


def fitting(store: TokenStore, used: np.ndarray, *, max_length: int, on_too_long: str) -> Fitting:
    """Groups whose prompt and longest used response fit in `max_length` tokens.

    Args:
        on_too_long: `drop` the group and count it; `truncate_response`, which needs a prompt that fits; or `error`.

    Raises:
        FuserlError: `error`, or an unknown way.
    """
    if on_too_long not in ("drop", "truncate_response", "error"):
        raise FuserlError(
            f"`{on_too_long}` is no way to treat long groups",
            where="`data.on_too_long`",
            hint="drop, truncate_response or error",
        )
    prompt = np.asarray(store.prompt_tokens)
    longest = prompt + np.where(used, store.branch_tokens, 0).max(axis=1)
    least = prompt + 1 + np.where(used, store.untrained, 0).max(axis=1)  # with one trained token of each response
    limit = least if on_too_long == "truncate_response" else longest
    too_long = limit > max_length
    if on_too_long == "error" and too_long.any():
        row = int(np.argmax(too_long))
        raise FuserlError(
            f"{int(too_long.sum())} groups are longer than {max_length} tokens, the first has {int(longest[row])}",
            where=f"group `{store.ids[row]}`",
            hint="raise `data.max_length`, or use `data.on_too_long=drop`",
        )
    why = f"longer than {max_length} tokens"
    return Fitting(np.flatnonzero(~too_long), [(store.ids[row], why) for row in np.flatnonzero(too_long)])


@dataclass(frozen=True)
class GroupCosts:
    """Rows of the store that take part, and the tokens each costs: its prompt and its unique used responses."""

    rows: np.ndarray
    tokens: np.ndarray
    ids: Sequence[str]

    @classmethod
    def of(cls, store: TokenStore, used: np.ndarray, rows: np.ndarray, truncate: int | None = None) -> GroupCosts:
        """Count them."""
        prompt = np.asarray(store.prompt_tokens)[rows]
        branches = np.asarray(store.branch_tokens)[rows]
        if truncate is not None:
            branches = np.minimum(branches, (truncate - prompt)[:, None])
        tokens = prompt + np.where(first_of_kind(store, used, rows), branches, 0).sum(axis=1)
        return cls(rows, tokens, store.ids.take(rows))


def first_of_kind(store: TokenStore, used: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[len(rows), K]: used responses that are no copy of an earlier used one of their group."""
    kind = np.where(used[rows] & store.valid[rows], store.duplicate_of[rows], -1)
    first = kind >= 0
    for column in range(1, kind.shape[1]):
        first[:, column] &= ~(kind[:, :column] == kind[:, column : column + 1]).any(axis=1)
    return first


@dataclass(frozen=True)
class Pack:
    """Groups (rows of the store) that are computed together; may be empty."""

    groups: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    prompts: tuple[int, ...]
    packs: tuple[tuple[Pack, ...], ...]  # [rank][position]


@dataclass(frozen=True, eq=False)
class Plan:
    """All optimiser steps of a run. Every step has `packs_per_step` packs on every rank."""

    costs: GroupCosts
    batch_size: int
    max_tokens: int
    ranks: int
    seed: int
    steps: int
    shuffle: bool
    packs_per_step: int
    _cache: dict[int, Step] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the store that take part."""
        return self.costs.rows

    def step(self, number: int) -> Step:
        """The step's prompts and packs."""
        if number not in self._cache:
            self._cache.clear()
            chosen = chosen_at(self, number)
            bins = pack(self.costs.tokens[chosen], self.packs_per_step * self.ranks, self.max_tokens)
            rows = self.costs.rows[chosen]
            packs = [Pack(tuple(int(rows[index]) for index in sorted(members))) for members in bins]
            by_rank = tuple(tuple(packs[rank :: self.ranks]) for rank in range(self.ranks))
            self._cache[number] = Step(tuple(map(int, rows)), by_rank)
        return self._cache[number]

    def tokens_of_step(self, number: int) -> int:
        """Tokens that all ranks compute."""
        return int(self.costs.tokens[chosen_at(self, number)].sum())


def chosen_at(plan: Plan, number: int) -> np.ndarray:
    """Positions in `plan.costs` of the step's prompts."""
    a_epoch = -(-len(plan.costs.rows) // plan.batch_size)
    epoch, step = divmod(number, a_epoch)
    order = epoch_order(len(plan.costs.rows), plan.seed, epoch, plan.shuffle)
    return order[step * plan.batch_size : (step + 1) * plan.batch_size]


@lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Order of the prompts in one epoch: a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(size) if shuffle else np.arange(size)


def make_plan(
    costs: GroupCosts,
    *,
    batch_size: int,
    max_tokens: int,
    ranks: int,
    seed: int,
    epochs: int,
    max_steps: int | None = None,
    shuffle: bool = True,
) -> Plan:
    """Cut a run into steps and packs.

    Args:
        batch_size: prompts an optimiser step; the last of an epoch may be smaller.
        max_tokens: of one pack.
        max_steps: wins over `epochs`.

    Raises:
        FuserlError: a number is not positive, there is no group, or one alone is larger than a pack.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("max_epochs", epochs),
        ("max_steps", 1 if max_steps is None else max_steps),
        ("trainer.devices", ranks),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise FuserlError(
                f"`{name}` must be at least 1, not {value}", where=f"`{name}`", hint="give a whole number"
            )
    if not len(costs.rows):
        raise FuserlError(
            "there is no prompt to plan for", where="the plan", hint="look at what was left out of the data"
        )
    largest = int(costs.tokens.argmax())
    if costs.tokens[largest] > max_tokens:
        raise FuserlError(
            f"one group alone has {int(costs.tokens[largest])} tokens, a pack may have {max_tokens}",
            where=f"group `{costs.ids[largest]}`",
            hint="raise `trainer.max_tokens`, or lower `data.max_length`",
        )
    steps = max_steps or epochs * -(-len(costs.rows) // batch_size)
    needed = _bins_needed(costs.tokens, batch_size, max_tokens, seed, steps, shuffle)
    return Plan(costs, batch_size, max_tokens, ranks, seed, steps, shuffle, packs_per_step=-(-needed // ranks))


def _bins_needed(tokens: np.ndarray, batch_size: int, max_tokens: int, seed: int, steps: int, shuffle: bool) -> int:
    """Packs that the fullest of all steps needs."""
    an_epoch, needed = -(-len(tokens) // batch_size), 1
    for epoch in range(-(-steps // an_epoch)):
        starts = np.arange(min(an_epoch, steps - epoch * an_epoch)) * batch_size
        costs = tokens[epoch_order(len(tokens), seed, epoch, shuffle)][: starts[-1] + batch_size]
        total, largest = np.add.reduceat(costs, starts), np.maximum.reduceat(costs, starts)
        # every bin but the last is filled so far that the largest group does not fit: this bounds their number
        most = np.where(total <= max_tokens, 1, 1 + (total - 1) // (max_tokens - largest + 1))
        for step in np.argsort(-most, kind="stable"):
            if most[step] <= needed:
                break
            needed = max(needed, len(first_fit(costs[starts[step] : starts[step] + batch_size], max_tokens)))
    return needed


def first_fit(tokens: np.ndarray, max_tokens: int) -> list[list[int]]:
    """First-fit decreasing: few bins, each at most `max_tokens`. O(n log n)."""
    bins: list[list[int]] = []
    room = _Room(len(tokens), max_tokens)
    for index in np.argsort(-tokens, kind="stable").tolist():
        at = room.take(int(tokens[index]))
        if at == len(bins):
            bins.append([])
        bins[at].append(index)
    return bins


class _Room:
    """A tournament over bins: every node knows the most room that a bin below it has."""

    def __init__(self, num_bins: int, size: int) -> None:
        self.leaves = 1 << max(0, num_bins - 1).bit_length()
        self.most = [size] * (2 * self.leaves)

    def take(self, cost: int) -> int:
        """The first bin with room for `cost`, which it loses."""
        node, most = 1, self.most
        while node < self.leaves:
            node = 2 * node + (most[2 * node] < cost)
        at = node - self.leaves
        most[node] -= cost
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return at


def next_fit(tokens: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Neighbours together, each bin at most `max_tokens`, or one larger group alone. Linear time, order kept."""
    ends = np.cumsum(tokens)
    bins, start = [], 0
    while start < len(tokens):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
        bins.append(np.arange(start, end))
        start = end
    return bins


def pack(tokens: np.ndarray, count: int, max_tokens: int) -> list[list[int]]:
    """Exactly `count` bins of near equal cost (largest first into the emptiest), each at most `max_tokens`."""
    heap = [(0, number) for number in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for index in np.argsort(-tokens, kind="stable"):
        cost, number = heapq.heappop(heap)
        bins[number].append(int(index))
        heapq.heappush(heap, (cost + int(tokens[index]), number))
    if max(cost for cost, _ in heap) > max_tokens:
        bins = first_fit(tokens, max_tokens)
        bins += [[] for _ in range(count - len(bins))]
    return bins

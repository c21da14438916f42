"""A pack as one flat stream: prompt, its unique responses, the next prompt, ...

tokens    p p p | a a | b b b | q q | c c
group     0 0 0   0 0   0 0 0   1 1   1 1
branch    0 0 0   1 1   2 2 2   0 0   1 1      0 = the shared prompt
position  0 1 2   3 4   3 4 5   0 1   2 3      each branch continues its prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.tokens.plan import first_of_kind
from fuserl.tokens.store import TokenStore

PADDING = 128  # tokens of one stretch of padding: a prompt of its own, which nobody reads


class Support(NamedTuple):
    """What is expected at n trained tokens of a response, first to last: the likeliest k tokens of each."""

    ids: np.ndarray  # [n, k], each at most once a row; -1 where there is none
    logps: np.ndarray  # [n, k], nats
    tail: np.ndarray  # [n], log of the probability of all others


class Segment(NamedTuple):
    """A prompt or a branch: consecutive tokens of the stream. Plain numbers: whoever plans with them asks no device."""

    start: int
    end: int
    prompt: tuple[int, int]  # (start, end) of the prompt that a branch continues; of itself for a prompt
    trained: int = 0  # tokens of a branch that are trained
    unit: int = 0  # of a branch: no slope of the loss depends on log-probs of the prompt's other units

    @property
    def is_prompt(self) -> bool:
        """Whether the segment is a prompt itself."""
        return (self.start, self.end) == self.prompt


class GroupBatch(NamedTuple):
    """One pack: T tokens, R trained tokens, P prompts by K responses."""

    input_ids: Int[Tensor, " T"]
    position_ids: Int[Tensor, " T"]
    group: Int[Tensor, " T"]
    branch: Int[Tensor, " T"]
    predict: Int[Tensor, " R"]  # where in the stream the hidden state lies that predicts ...
    labels: Int[Tensor, " R"]  # ... this token ...
    owner: Int[Tensor, " R"]  # ... of this unique response
    row: Int[Tensor, "P K"]  # unique response of each table entry; -1 where there is none
    reference_logps: Float[Tensor, "P K"]
    rewards: Float[Tensor, "P K"]
    given: Float[Tensor, "P K"]
    num_tokens: Int[Tensor, "P K"]
    source: Int[Tensor, "P K"]
    valid: Bool[Tensor, "P K"]
    index: Int[Tensor, " P"]  # rows of the store
    count_in_step: Float[Tensor, ""]  # denominator of the whole optimiser step
    progress: Float[Tensor, ""]  # share of the run's steps done before this one
    segments: tuple[Segment, ...]  # the stream's prompts and branches, in order
    support_ids: Int[Tensor, "R k"] | None = None  # what is expected in a label's place; -1: no token
    support_logps: Float[Tensor, "R k"] | None = None  # nats
    support_tail: Float[Tensor, " R"] | None = None  # log of the probability of all other tokens

    def to(self, device: torch.device | str, **kwargs: Any) -> GroupBatch:
        """The same pack with its tensors on another device."""
        return GroupBatch(*(part.to(device, **kwargs) if isinstance(part, Tensor) else part for part in self))


def collate(
    store: TokenStore,
    groups: Sequence[int],
    used: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    units: np.ndarray | None = None,
    count_in_step: float = 1.0,
    progress: float = 0.0,
    truncate: int | None = None,
    multiple: int = 1,
    support: Callable[[int, int], Support] | None = None,
) -> GroupBatch:
    """Lay out the used responses of some groups.

    Args:
        groups: rows of the store.
        used: [N, K], which responses to compute.
        reference: [N, K] reference log-probs, nats; zeros where None.
        units: [N, K], see `Segment.unit`; one a prompt where None.
        truncate: cut responses so that prompt and response have at most so many tokens.
        multiple: the stream is padded up to a multiple of so many tokens.
        support: what is expected at the trained tokens of a response, given its row and column in the store.
    """
    rows = np.asarray(groups, dtype=np.int64)
    valid = np.asarray(used[rows] & store.valid[rows], dtype=bool)
    stream = _Stream()
    table, expected = _lay_down(stream, store, rows, used, valid, units, truncate, support)
    trained = np.array([branch.trained for branch in stream.segments if not branch.is_prompt] + [0], dtype=np.int64)
    stream.pad(-stream.length % multiple, len(rows))
    width = max(1, int(np.flatnonzero(np.asarray(store.valid)[rows].any(axis=0)).max(initial=0)) + 1)

    def column_of(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values[:, :width]))

    reference_rows = np.zeros(valid.shape) if reference is None else np.asarray(reference)[rows]
    return GroupBatch(
        **stream.tensors(),
        row=column_of(table),
        reference_logps=column_of(reference_rows.astype(np.float64)),
        rewards=column_of(np.asarray(store.rewards)[rows].astype(np.float64)),
        given=column_of(np.asarray(store.given)[rows].astype(np.float64)),
        num_tokens=column_of(trained[table]),  # -1 is the last, 0
        source=column_of(np.asarray(store.source)[rows].astype(np.int64).clip(min=0)),
        valid=column_of(valid),
        index=torch.from_numpy(rows),
        count_in_step=torch.tensor(count_in_step, dtype=torch.float64),
        progress=torch.tensor(progress, dtype=torch.float64),
        segments=tuple(stream.segments),
        **({} if support is None else _joined(expected)),
    )


def _lay_down(
    stream: _Stream,
    store: TokenStore,
    rows: np.ndarray,
    used: np.ndarray,
    valid: np.ndarray,
    units: np.ndarray | None,
    truncate: int | None,
    support: Callable[[int, int], Support] | None,
) -> tuple[np.ndarray, list[Support]]:
    """Prompts with their unique responses; which unique response each [P, K] entry is, and what is expected of each."""
    first, kind = first_of_kind(store, used, rows), np.asarray(store.duplicate_of)[rows]
    table, expected = np.full(valid.shape, -1, dtype=np.int64), []
    for number, row in enumerate(rows.tolist()):
        prompt = stream.add_prompt(store.prompt(row), number)
        room = None if truncate is None else truncate - len(store.prompt(row))
        owner_of_kind: dict[int, int] = {}
        for column in np.flatnonzero(valid[number]).tolist():
            if first[number, column]:
                branch, lead = store.branch(row, column)[:room], int(store.untrained[row, column])
                unit = 0 if units is None else int(units[row, column])
                owner_of_kind[int(kind[number, column])] = stream.add_branch(prompt, branch, lead, unit)
                if support is not None:
                    whole, trained = support(row, column), stream.segments[-1].trained
                    expected.append(Support(*(part[:trained] for part in whole)))
            table[number, column] = owner_of_kind[int(kind[number, column])]
    return table, expected


def _joined(expected: Sequence[Support]) -> dict[str, Tensor]:
    """A pack's, in the order of its labels."""
    ids, logps, tail = (
        zip(*expected, strict=True) if expected else ([np.zeros((0, 1))], [np.zeros((0, 1))], [np.zeros(0)])
    )
    return {
        "support_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        "support_logps": torch.from_numpy(np.concatenate(logps).astype(np.float32)),
        "support_tail": torch.from_numpy(np.concatenate(tail).astype(np.float32)),
    }


class _Stream:
    """Grows the flat arrays of a pack."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {
            name: [] for name in ("input_ids", "position_ids", "group", "branch", "predict", "labels", "owner")
        }
        self.length, self.owners, self.branches = 0, 0, 0
        self.segments: list[Segment] = []

    def add_prompt(self, tokens: np.ndarray, group: int) -> tuple[int, int, int]:
        """(group, start, end) of the prompt just laid down."""
        self.branches = 0
        span = (self.length, self.length + len(tokens))
        self._extend(tokens, 0, group, 0)
        self.segments.append(Segment(*span, prompt=span))
        return group, *span

    def add_branch(self, prompt: tuple[int, int, int], tokens: np.ndarray, untrained: int, unit: int) -> int:
        """Lay down a unique response; its number among all of the pack."""
        group, start, end = prompt
        self.branches += 1
        begin = self.length
        self._extend(tokens, end - start, group, self.branches)
        self.segments.append(Segment(begin, self.length, (start, end), max(0, len(tokens) - untrained), unit))
        before = np.arange(begin - 1, begin + len(tokens) - 1)
        before[:1] = end - 1  # the first token is predicted by the prompt's last hidden state
        self.parts["predict"].append(before[untrained:])
        self.parts["labels"].append(np.asarray(tokens[untrained:], dtype=np.int64))
        self.parts["owner"].append(np.full(max(0, len(tokens) - untrained), self.owners))
        self.owners += 1
        return self.owners - 1

    def pad(self, size: int, group: int) -> None:
        """Lay down `size` tokens that nothing reads, as short prompts without responses."""
        for number, start in enumerate(range(0, size, PADDING)):
            self.add_prompt(np.zeros(min(PADDING, size - start), dtype=np.int32), group + number)

    def _extend(self, tokens: np.ndarray, position: int, group: int, branch: int) -> None:
        size = len(tokens)
        self.parts["input_ids"].append(np.asarray(tokens, dtype=np.int64))
        self.parts["position_ids"].append(np.arange(position, position + size))
        self.parts["group"].append(np.full(size, group))
        self.parts["branch"].append(np.full(size, branch))
        self.length += size

    def tensors(self) -> dict[str, Tensor]:
        """All of them as int64."""
        empty = np.zeros(0, dtype=np.int64)
        return {name: torch.from_numpy(np.concatenate([empty, *parts])) for name, parts in self.parts.items()}

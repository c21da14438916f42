"""How a pack's trained tokens are cut into slices for the head: by prompts, and by what a slope depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fuserl.tokens.collate import Segment

SHARE = 4  # logits are made in slices of a fourth of what memory allows, more only where that spares a second pass


class Span(NamedTuple):
    """Consecutive prompts that go through the head together, as half-open ranges."""

    prompts: tuple[int, int]
    responses: tuple[int, int]  # unique ones
    rows: tuple[int, int]  # trained tokens
    pieces: tuple[tuple[slice, ...], ...] = ()  # their parts: no slope of one depends on log-probs of another


def few(rows: int) -> int:
    """Rows of a slice, where `rows` would fit into memory."""
    return max(1, rows // SHARE)


def size_of(piece: Sequence[slice]) -> int:
    """Its rows."""
    return sum(part.stop - part.start for part in piece)


def spans_of(segments: Sequence[Segment], num_prompts: int, rows: int) -> list[Span]:
    """Prompts joined while their trained tokens are a slice; a larger prompt stands alone, in pieces.

    Args:
        rows: the most whose logits may exist at a time.
    """
    spans: list[Span] = []
    prompt, response, row = 0, 0, 0
    for branches in groups_of(segments)[:num_prompts]:
        size = len(branches), sum(branch.trained for branch in branches)
        if spans and row + size[1] - spans[-1].rows[0] <= few(rows):
            begin = spans.pop()
        else:
            begin = Span((prompt, prompt), (response, response), (row, row))
        pieces = (
            ((slice(begin.rows[0], row + size[1]),),) if size[1] <= few(rows) else _pieces(branches, row, few(rows))
        )
        prompt, response, row = prompt + 1, response + size[0], row + size[1]
        spans.append(Span((begin.prompts[0], prompt), (begin.responses[0], response), (begin.rows[0], row), pieces))
    return spans


def _pieces(branches: Sequence[Segment], start: int, slice_rows: int) -> tuple[tuple[slice, ...], ...]:
    """Rows of a prompt's units, small units together."""
    units: dict[int, list[slice]] = {}
    for branch in branches:
        units.setdefault(branch.unit, []).append(slice(start, start + branch.trained))
        start += branch.trained
    pieces: list[list[slice]] = []
    room = 0
    for unit in units.values():
        if not pieces or size_of(unit) > room:
            pieces.append([])
            room = slice_rows
        pieces[-1] += unit
        room -= size_of(unit)
    return tuple(map(_joined, pieces))


def _joined(parts: Sequence[slice]) -> tuple[slice, ...]:
    """In order, neighbours as one."""
    joined: list[slice] = []
    for part in sorted(parts, key=lambda part: part.start):
        follows = joined and joined[-1].stop == part.start
        joined.append(slice(joined.pop().start if follows else part.start, part.stop))
    return tuple(joined)


def groups_of(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The branches of every prompt."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.is_prompt:
            groups.append([])
        else:
            groups[-1].append(segment)
    return groups

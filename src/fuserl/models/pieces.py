"""A pack's attention cut into pieces, so that the cost is the attended area and no [T, T] mask exists.

A long group is a cascade: the prompt against itself, all its branches together against the prompt, every branch against
itself. Short groups go together through one padded, masked call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fuserl.models.layout import PackLayout
from fuserl.tokens.collate import Segment

DENSE = 384  # tokens of a group up to which one padded, masked call beats calls for its segments


@dataclass(frozen=True, eq=False)
class Padded:
    """Short groups in one call."""

    index: Tensor  # [B, L], places in the stream; padding repeats a group's first
    inside: Tensor  # [B, L], which of them are real
    mask: Tensor  # [B, 1, L, L]


@dataclass(frozen=True)
class Triangle:
    """A stretch of the stream that sees itself causally."""

    start: int
    end: int


@dataclass(frozen=True)
class Cascade:
    """The branches of a long group: each sees the whole prompt, and itself causally."""

    prompt: tuple[int, int]
    branches: tuple[tuple[int, int], ...]  # consecutive


@dataclass(frozen=True, eq=False)
class Masked:
    """A segment whose window is shorter than what it could see."""

    segment: Segment
    mask: Tensor  # [own tokens, prompt and own tokens]


Piece = Padded | Triangle | Cascade | Masked


def pieces_of(layout: PackLayout, window: int | None) -> Iterator[Piece]:
    """Every query of the pack lies in exactly one triangle, padded call or masked segment, or in one cascade."""
    groups = layout.groups()
    yield from _padded([group for group in groups if group[-1].end - group[0].start <= DENSE], layout, window)
    for group in groups:
        if group[-1].end - group[0].start <= DENSE:
            continue
        prompt, *branches = group
        reach = prompt.end - prompt.start + max((branch.end - branch.start for branch in branches), default=0)
        if window is not None and reach > window:
            yield from (_masked(layout, segment, window) for segment in group)
            continue
        yield Triangle(prompt.start, prompt.end)
        spans = tuple((branch.start, branch.end) for branch in branches if branch.end > branch.start)
        if spans:
            yield Cascade((prompt.start, prompt.end), spans)


def _padded(short: list[list[Segment]], layout: PackLayout, window: int | None) -> Iterator[Padded]:
    """Groups of similar length share a call."""
    short = sorted(short, key=lambda group: group[-1].end - group[0].start)
    device = layout.group.device
    while short:
        longest = short[-1][-1].end - short[-1][0].start
        taken = [group for group in short if group[-1].end - group[0].start > longest // 2]
        short = short[: len(short) - len(taken)]
        starts = torch.tensor([group[0].start for group in taken])[:, None]
        lengths = torch.tensor([group[-1].end - group[0].start for group in taken])[:, None]
        steps = torch.arange(longest)[None]
        index = torch.where(steps < lengths, starts + steps, starts).to(device)
        inside = (steps < lengths).to(device)
        branch, position = layout.branch[index], layout.position[index]
        mask = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        mask &= (position[:, None, :] <= position[:, :, None]) & inside[:, None, :]
        if window is not None:
            mask &= position[:, :, None] - position[:, None, :] < window
        yield Padded(index, inside, mask[:, None])


def _masked(layout: PackLayout, segment: Segment, window: int) -> Masked:
    own = layout.position[segment.start : segment.end]
    seen = own if segment.is_prompt else torch.cat([layout.position[slice(*segment.prompt)], own])
    return Masked(segment, (seen[None, :] <= own[:, None]) & (own[:, None] - seen[None, :] < window))


def keys_of(segment: Segment, states: Tensor) -> Tensor:
    """What a segment may see of [1, H, T, D]: its prompt, then itself."""
    own = states[:, :, segment.start : segment.end]
    return own if segment.is_prompt else torch.cat([states[:, :, slice(*segment.prompt)], own], dim=2)


def gathered(states: Tensor, index: Tensor) -> Tensor:
    """[1, H, T, D] -> [B, H, L, D]."""
    return states[0].index_select(1, index.flatten()).unflatten(1, tuple(index.shape)).transpose(0, 1)

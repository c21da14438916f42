"""Who sees whom in a pack: each response its prompt and itself, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fuserl.tokens.collate import GroupBatch, Segment


def may_attend(group: Int[Tensor, " T"], branch: Int[Tensor, " T"], position: Int[Tensor, " T"]) -> Bool[Tensor, "T T"]:
    """May query i see key j? The definition of truth; only tests build it whole.

    A sliding window further asks that positions lie less than the window apart.
    """
    same_group = group[:, None] == group[None, :]
    visible = (branch[:, None] == branch[None, :]) | (branch[None, :] == 0)
    return same_group & visible & (position[None, :] <= position[:, None])


@dataclass(eq=False)
class PackLayout:
    """The segments of a pack, and what each kernel derives from them once for all layers."""

    backend: str
    group: Int[Tensor, " T"]
    branch: Int[Tensor, " T"]
    position: Int[Tensor, " T"]
    segments: Sequence[Segment]
    derived: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: GroupBatch, backend: str) -> PackLayout:
        """A batch's layout."""
        return cls(backend, batch.group, batch.branch, batch.position_ids, batch.segments)

    @classmethod
    def from_columns(cls, group: Tensor, branch: Tensor, position: Tensor, backend: str) -> PackLayout:
        """Read the segments off the columns themselves."""
        key = group.cpu() * (int(branch.max()) + 1 if branch.numel() else 1) + branch.cpu()
        ends = torch.cumsum(torch.unique_consecutive(key, return_counts=True)[1], 0).tolist()
        starts = [0, *ends[:-1]]
        heads = branch.cpu()[starts].tolist() if ends else []
        segments: list[Segment] = []
        prompt = (0, 0)
        for start, end, head in zip(starts, ends, heads, strict=True):
            prompt = (start, end) if head == 0 else prompt
            segments.append(Segment(start, end, prompt))
        return cls(backend, group, branch, position, segments)

    def groups(self) -> list[list[Segment]]:
        """Segments by group, the prompt first."""
        found: list[list[Segment]] = []
        for segment in self.segments:
            if segment.is_prompt:
                found.append([])
            found[-1].append(segment)
        return found

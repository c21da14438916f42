"""Which groups a run reads, as `conf/data` says: streamed each time, never held."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice

from omegaconf import DictConfig

from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.inputs import content_digest
from fuserl.records.schema import PromptGroup
from fuserl.records.selection import keep_sources, require_sources
from fuserl.records.splits import in_part, is_held_out

SALT = "validation"


@dataclass(frozen=True)
class Side:
    """The training prompts, or the validation prompts."""

    path: str
    split: str | None
    form: str
    on_bad_row: str
    sources: tuple[str, ...] | None
    held_out: tuple[float, bool] | None  # (share that is held out by hash, whether this side is it)
    part: tuple[float, float]
    limit: int | None

    def groups(self, report: ReadReport) -> Iterator[PromptGroup]:
        """Read them.

        Raises:
            FuserlError: a bad row, or a source that the data does not have.
        """
        if self.sources is not None:
            require_sources(self._read(ReadReport()), self.sources)
        return islice(self._chosen(report), self.limit)

    @cached_property
    def content(self) -> str:
        """Digest of all that decides the groups: the files' content, read once, and the choice among their rows."""
        choice = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "path"}
        key = [content_digest(self.path, self.split), choice]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def _chosen(self, report: ReadReport) -> Iterator[PromptGroup]:
        groups = self._read(report)
        for group in groups if self.sources is None else keep_sources(groups, self.sources):
            if self.held_out and is_held_out(group, self.held_out[0], SALT) is not self.held_out[1]:
                continue
            if in_part(group.id, *self.part):
                yield group

    def _read(self, report: ReadReport) -> Iterator[PromptGroup]:
        return read_groups(self.path, split=self.split, form=self.form, on_bad_row=self.on_bad_row, report=report)


def sides_of(data: DictConfig) -> tuple[Side, Side]:
    """(training, validation): two splits where the set has them, else one split that is parted by hash."""
    splits = splits_of(data.path)
    apart = data.validation_split in splits and data.split != data.validation_split

    def side(split: str, held_out: bool, part: tuple[float, float], limit: int | None) -> Side:
        """One of the two."""
        return Side(
            path=str(data.path),
            split=split,  # asked for on the hub too, whose splits we do not list; sets without splits ignore it
            form=data.format,
            on_bad_row=data.on_bad_row,
            sources=tuple(data.sources) if data.sources else None,
            held_out=None if apart else (data.validation_fraction, held_out),
            part=part,
            limit=limit,
        )

    low, high = data.part
    return (
        side(data.split, False, (low, high), data.limit),
        side(data.validation_split if apart else data.split, True, (0.0, 1.0), data.validation_limit),
    )

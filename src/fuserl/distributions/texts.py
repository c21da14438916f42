"""The responses that are aligned: every different one once, in the order of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fuserl.distributions.readers import Reader
from fuserl.errors import FuserlError
from fuserl.objectives.supervised import pooled
from fuserl.records.formats import ReadReport
from fuserl.records.reading import Side
from fuserl.terminal import say
from fuserl.tokens.plan import fitting
from fuserl.tokens.scores import scores_of


class Place(NamedTuple):
    """Where a text stands, and what its response says."""

    row: int
    column: int
    text: str


@dataclass(frozen=True)
class Texts:
    """Responses of a data set. Two are one text when the target reads them as the same tokens."""

    side: Side
    target: Reader
    used: np.ndarray  # [N, K]

    @cached_property
    def key_of(self) -> dict[tuple[int, int], str]:
        """(row, column) -> key, of every used response; equal ones share theirs. See `tokens.store.response_key`."""
        store = self.target.store
        rows, columns = np.nonzero(self.used & np.asarray(store.valid))
        places = zip(rows.tolist(), columns.tolist(), strict=True)
        return {place: bytes(store.keys[place]).hex() for place in places}

    @cached_property
    def place_of(self) -> dict[str, tuple[int, int]]:
        """Key -> (row, column) where it stands first, in the order of rows."""
        found: dict[str, tuple[int, int]] = {}
        for place, key in self.key_of.items():
            found.setdefault(key, place)
        return found

    def __len__(self) -> int:
        return len(self.place_of)

    def places(self) -> Iterator[Place]:
        """All of them; the data is read once more."""
        columns: dict[int, list[int]] = {}
        for row, column in self.place_of.values():
            columns.setdefault(row, []).append(column)
        for row, group in enumerate(self.side.groups(ReadReport())):
            for column in columns.get(row, ()):
                yield Place(row, column, group.responses[column].text)


def chosen_texts(side: Side, target: Reader, given: Mapping[str, Any]) -> Texts:
    """What training would use, see `pool`, `size` and `data.max_length` of `conf/align.yaml`.

    Raises:
        FuserlError: a setting is none, or nothing is left.
    """
    store, data = target.store, given["data"]
    try:
        used = np.array(pooled(scores_of(store), pool=given["pool"], size=given["size"]), dtype=bool)
    except FuserlError as error:  # the objective's words; the settings are ours
        raise FuserlError(error.what, where=error.where.replace("objective.", ""), hint=error.hint) from error
    keep = fitting(store, used, max_length=data["max_length"], on_too_long=data["on_too_long"])
    rows = np.zeros(len(used), dtype=bool)
    rows[keep.keep] = True
    if keep.dropped:
        say(f"left out: {len(keep.dropped):,} x {keep.dropped[0][1]}")
    texts = Texts(side, target, used & rows[:, None])
    if not len(texts):
        raise FuserlError(
            "no text is left to align",
            where=f"`data.path={data['path']}`",
            hint="look at the rows; widen `data.part`, `data.limit` or `data.max_length`; "
            "choosing among responses needs rewards (`fuserl score`), or `size` as large as a group",
        )
    return texts

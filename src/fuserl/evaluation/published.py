"""Rows of the papers' result tables, to stand beside ours; never among them.

They lie in conf/published/, a file a paper: FILE/MODEL/STAGE is a row, FILE/MODEL all rows of a model, FILE all of a paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import yaml

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.protocol import Number
from fuserl.settings import config_folder

PROVENANCE = ("read", "second_hand")  # in the source itself; reported by somebody else
AVERAGE = "average"  # as printed


class Published(NamedTuple):
    """A row."""

    name: str  # FILE/MODEL/STAGE
    label: str  # what the paper calls the model
    title: str  # what tables call the paper
    source: str
    provenance: str  # one of PROVENANCE
    values: Mapping[str, float]  # by benchmark, or benchmark/number; in the paper's unit
    average: float | None  # as the paper prints it, over all that it measured; None: it prints none

    @property
    def cells(self) -> dict[str, Number]:
        """The number of each benchmark that tables show; no intervals, since papers print none."""
        return {
            name: Number(name, value, over=f"published: {self.title}")
            for name, value in self.values.items()
            if "/" not in name
        }

    def mean_over(self, benchmarks: Iterable[str]) -> float | None:
        """The plain mean of just these, so that it compares with ours; None where one is missing, or there are none."""
        values = [self.values.get(name) for name in benchmarks]
        return None if not values or None in values else sum(values) / len(values)  # type: ignore[arg-type]


def published(names: Sequence[str]) -> list[Published]:
    """The rows of these names, in order, each once.

    >>> [row.label for row in published(["fusechat3/llama31_8b/final", "wrpo/llama3_8b/base"])]
    ['FuseChat-Llama-3.1-8B', 'Llama-3-8B-Instruct']

    Raises:
        FuserlError: there is no such row, or a file is not as it must be.
    """
    rows: dict[str, Published] = {}
    for name in names:
        wanted = str(name).strip("/")
        found = [row for row in _all() if row.name == wanted or row.name.startswith(wanted + "/")]
        if not found or not wanted:
            raise _unknown(name)
        rows |= {row.name: row for row in found}
    return list(rows.values())


def _unknown(name: str) -> FuserlError:
    parts = [row.name.split("/") for row in _all()]
    names = sorted({"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)})
    near = difflib.get_close_matches(str(name), names, n=4, cutoff=0.5)
    return FuserlError(
        f"there is no published row `{name}`",
        where="`papers`",
        hint=f"is it {', '.join(near)}?" if near else f"there are {', '.join(sorted({part[0] for part in parts}))}, each "
        "with MODEL/STAGE behind it: see conf/published/",
    )  # fmt: skip


@cache
def _all() -> tuple[Published, ...]:
    files = sorted((config_folder() / "published").glob("*.yaml"))
    return tuple(row for file in files for row in rows_in(file.stem, file.read_text(encoding="utf-8")))


def rows_in(file: str, text: str) -> list[Published]:
    """The rows of a file.

    Raises:
        FuserlError: it is not as it must be.
    """
    try:
        said = yaml.safe_load(text)
        return [_row(file, said, name, row) for name, row in said["rows"].items()]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FuserlError(
            f"the published rows cannot be read ({error!r})",
            where=f"conf/published/{file}.yaml",
            hint="title, provenance (read or second_hand), source, and rows: {MODEL/STAGE: {label: ..., values: {gsm8k: 88.0}}}",
        ) from error


def _row(file: str, said: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> Published:
    values = {str(key): float(value) for key, value in row["values"].items()}
    if said["provenance"] not in PROVENANCE or not values:
        raise ValueError(f"`{name}` has no values, or no provenance")
    average = values.pop(AVERAGE, None)
    texts = (str(row["label"]), str(said["title"]), str(said["source"]), str(said["provenance"]))
    return Published(f"{file}/{name}", *texts, values, average)

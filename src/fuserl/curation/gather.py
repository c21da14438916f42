"""Inputs of any form and order, made one data set in one order: by the hash of prompt ids, responses by source.

What follows depends on nothing but content: not on the order of rows, nor on which of several files a response lies in.
Groups of several inputs with one id are joined: sources may lie apart, and so may a target's own samples.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from fuserl.curation.lines import read_lines, to_line
from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.inputs import files_of, num_rows
from fuserl.records.manifest import read_manifest
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup, Response
from fuserl.records.splits import prompt_digest
from fuserl.records.store import write_groups
from fuserl.terminal import bar

INPUT = "input_name"  # the field of a group that says where it is from, where there are several inputs
PILE_BYTES = 1 << 25  # of stored input a pile, which is sorted in memory
SWELL = 4  # stored bytes grow about so much when they are unpacked
PILES = 256  # at most: all are open at once
LISTED = 1000  # bad rows that are listed


@dataclass(frozen=True)
class Input:
    """One data set to read."""

    name: str  # its own among the inputs
    path: str
    split: str | None = None
    form: str = "auto"
    on_bad_row: str = "error"
    columns: Mapping[str, str] = field(default_factory=dict)  # our field -> the name it has in the rows
    domain: str | None = None  # of all its prompts; None: what its rows say
    prefix: str = ""  # before its prompt ids, where two inputs use the same ids for other prompts

    def groups(self, report: ReadReport) -> Iterator[PromptGroup]:
        """Read it, empty answers included."""
        settings = {"split": self.split, "form": self.form, "on_bad_row": self.on_bad_row, "columns": self.columns}
        for group in read_groups(self.path, **settings, report=report, needs=Needs(text=False)):
            yield replace(group, id=self.prefix + group.id, domain=self.domain or group.domain)


@dataclass
class Joined:
    """What joining has found, by domain; for the report."""

    read: dict[str, Any]  # input -> rows, groups, left out
    skipped: list[list[str]] = field(default_factory=list)  # (input, where, what)
    prompts: Counter[str] = field(default_factory=Counter)  # domain -> groups before joining
    responses: Counter[tuple[str, str]] = field(default_factory=Counter)  # (domain, source) -> responses before
    prompts_joined: Counter[str] = field(default_factory=Counter)  # groups that became part of another
    responses_twice: Counter[tuple[str, str]] = field(default_factory=Counter)  # that another input holds too

    def plain(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        tables = ("prompts", "responses", "prompts_joined", "responses_twice")
        counts = {name: _listed(getattr(self, name)) for name in tables}
        return {"read": self.read, "skipped": self.skipped} | counts


def gather(inputs: Sequence[Input], folder: Path) -> dict[str, Any]:
    """Write all groups of the inputs to a data set, in an order that only their ids decide.

    Returns:
        What was read and joined, see `Joined`; from the folder itself where it is there already.

    Raises:
        FuserlError: an input cannot be read, or two use one id for different prompts.
    """
    if (folder / "manifest.json").exists():
        return read_manifest(folder).extra
    joined, piles = Joined(read={}), folder.with_name(folder.name + ".piles")
    shutil.rmtree(piles, ignore_errors=True)
    piles.mkdir(parents=True)
    try:
        _pile(inputs, piles, joined)
        facts: dict[str, Any] = {"select": "input"}
        write_groups(_sorted(piles, joined, facts), folder, manifest_extra=facts)
    finally:
        shutil.rmtree(piles, ignore_errors=True)
    return read_manifest(folder).extra


def order_of(prompt_id: str) -> str:
    """What groups are ordered by."""
    return hashlib.sha256(prompt_id.encode()).hexdigest()


def _pile(inputs: Sequence[Input], piles: Path, joined: Joined) -> None:
    """Distribute the groups over files that are small enough to be sorted one by one."""
    files = [file for one in inputs for file in files_of(one.path, one.split)]
    stored = [file.stat().st_size for file in files if file.exists()]  # reading says which are missing
    number = min(PILES, 1 + sum(stored) * SWELL // PILE_BYTES) if stored else PILES
    with ExitStack() as opened:
        files = [opened.enter_context((piles / f"{n:03d}").open("w", encoding="utf-8")) for n in range(number)]
        for place, one in enumerate(inputs):
            report = ReadReport()
            rows = num_rows(one.path, one.split)
            with bar(f"reading {one.name}", lambda rows=rows: rows) as told:
                for group in one.groups(report):
                    if len(inputs) > 1:
                        group = replace(group, extra={**group.extra, INPUT: one.name})
                    pile = int(order_of(group.id)[:8], 16) * number >> 32
                    files[pile].write(to_line(group, place) + "\n")
                    told(report.rows)
            left_out = [[one.name, where, what] for where, what in report.skipped]
            joined.read[one.name] = {"rows": report.rows, "groups": report.groups, "left_out": len(left_out)}
            joined.skipped += left_out[:LISTED]


def _sorted(piles: Path, joined: Joined, facts: dict[str, Any]) -> Iterator[PromptGroup]:
    """The groups in order, those of one id joined; `facts` is filled before the end."""
    for pile in sorted(piles.iterdir()):
        entries = [(order_of(group.id), group.id, place, group) for group, place in read_lines(pile)]
        entries.sort(key=lambda entry: entry[:3])
        for _, same in groupby(entries, key=lambda entry: entry[1]):
            yield _join([group for *_, group in same], joined)
    facts |= joined.plain()


def _join(groups: list[PromptGroup], joined: Joined) -> PromptGroup:
    """One group of those with one id; the first input says domain, reference and further fields where it has them."""
    first = groups[0]
    for group in groups[1:]:
        if prompt_digest(group.prompt) != prompt_digest(first.prompt):
            names = ", ".join(f"`{one.extra.get(INPUT)}`" for one in (first, group))
            raise FuserlError(
                f"two inputs use the id `{group.id}` for different prompts",
                where=names,
                hint="tell them apart with a `prefix` for one of them in `data.inputs`",
            )
    responses = [response for group in groups for response in group.responses]
    joined.prompts[first.domain] += len(groups)
    joined.prompts_joined[first.domain] += len(groups) - 1
    joined.responses.update((first.domain, response.source) for response in responses)
    if len(groups) > 1:
        responses = list(_once(responses, first.domain, joined))
    extra = {key: value for group in reversed(groups) for key, value in group.extra.items()}
    reference = next((group.reference for group in groups if group.reference is not None), None)
    ordered = tuple(sorted(responses, key=lambda response: (response.source, response.sample)))
    return replace(first, responses=ordered, reference=reference, extra=extra)


def _once(responses: Iterable[Response], domain: str, joined: Joined) -> Iterator[Response]:
    """Responses of several inputs: those that stand in two of them once, scored if one is; numbers given once."""
    by_number: dict[tuple[str, int], Response] = {}
    for response in responses:
        place = (response.source, response.sample)
        there = by_number.get(place)
        if there is not None and there.text == response.text:
            joined.responses_twice[domain, response.source] += 1
            by_number[place] = there if there.reward is not None else response
            continue
        while (response.source, response.sample) in by_number:
            response = replace(response, sample=response.sample + 1)
        by_number[response.source, response.sample] = response
    yield from by_number.values()


def _listed(counts: Counter) -> list[list[Any]]:
    """Counts as JSON has them: rows of key and number."""
    rows = ([*key] if isinstance(key, tuple) else [key] for key in sorted(counts))
    return [[*row, counts[tuple(row) if len(row) > 1 else row[0]]] for row in rows]

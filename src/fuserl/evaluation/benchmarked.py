"""What pages show of benchmarks: models by benchmarks beside published rows, and how each number was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fuserl.evaluation.benchmarks.protocol import Number
from fuserl.evaluation.benchmarks.results import heads
from fuserl.evaluation.runs import Run
from fuserl.evaluation.suite_table import Row, columns_of, heading, rows_of, told
from fuserl.evaluation.tables import write_rows
from fuserl.reporting.report import Section, Table, Text
from fuserl.reporting.statistics import bootstrap_ends

NOTE = (
    "Brackets are 95 % intervals: of one run as its benchmark makes them, of several over seeds. Published rows are other "
    "people's numbers, with their judge, their day and their decoding; a difference to them is not tested."
)


Models = Mapping[str, Sequence[Run]]  # label -> runs, which differ in the seed alone


def table_of(models: Models, published: Sequence[Row] = ()) -> list[Row]:
    """Models with their benchmarks; empty where none was evaluated."""
    ours = [Row(label, _cells(runs), False) for label, runs in models.items()]
    return rows_of([row for row in ours if row.cells], published) if any(row.cells for row in ours) else []


def sections_of(models: Models, rows: Sequence[Row], colours: Sequence[str] = ()) -> list[Section]:
    """For a page; none where nothing was evaluated.

    Args:
        rows: of `table_of`.
        colours: of the models, in their order.
    """
    if not rows:
        return []
    names, places = columns_of(rows), {label: index for index, label in enumerate(models)}
    body = [
        [row.label + (" (published)" if row.published else ""), *(told(row.cells.get(name)) for name in names)]
        for row in rows
    ]
    table = Table(
        ["model", *(heading(name, rows) for name in names)],
        body,
        labels=frozenset({0}),
        methods=[None if row.published else places[row.label] for row in rows],
        colours=["" if row.published else colours[places[row.label]] for row in rows] if colours else (),
        sortable=True,
    )
    made = Section("How the numbers were made", [_made(models)])
    return [Section("Benchmarks", [Text(NOTE, note=True), table]), made]


def write_benchmarks(path: Path, models: Models, published: Sequence[Row]) -> None:
    """`benchmarks.csv`: a row a number, in full, with how it was made."""
    rows = []
    for label, runs in models.items():
        for run in runs:
            for name, result in run.benchmarks.items():
                made = {"run": str(run.path), "about": json.dumps(result.about, default=str, sort_keys=True)}
                counts = {f"num_{key}": value for key, value in result.counts.items()}
                for number in result.numbers:
                    fields = {"model": label, "seed": run.seed, "published": False, "benchmark": name}
                    rows.append(fields | _fields(number) | counts | made)
    for row in published:
        for name, number in row.cells.items():
            rows.append({"model": row.label, "published": True, "benchmark": name} | _fields(number))
    if rows:
        write_rows(path, rows)


def _fields(number: Number) -> dict[str, object]:
    ends = {"low": number.low, "high": number.high, "interval_over": number.over}
    return {"number": number.name, "value": number.value} | ends


def _cells(runs: Sequence[Run]) -> dict[str, Number]:
    """Numbers by benchmark, those that all runs have."""
    tables = [heads(run.benchmarks) for run in runs]
    if len(tables) == 1:
        return tables[0]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: _over_seeds([table[name] for table in tables]) for name in shared}


def _over_seeds(numbers: Sequence[Number]) -> Number:
    values = [number.value for number in numbers]
    if None in values:
        return Number(numbers[0].name, None)
    seeds = np.array(values, dtype=np.float64)[:, None]
    low, high = (float(end) for end in bootstrap_ends(seeds))
    ends = (low, high) if np.isfinite([low, high]).all() else (None, None)
    return Number(numbers[0].name, float(seeds.mean()), *ends, f"{len(numbers)} seeds")


def _made(models: Models) -> Table:
    """A row a model and benchmark: all its numbers, and judge, day, decoding, counts, notes."""
    rows, places = [], []
    for index, (label, runs) in enumerate(models.items()):
        for name, result in ((name, result) for run in runs for name, result in run.benchmarks.items()):
            numbers = ", ".join(f"{number.name} {told(number)}" for number in result.numbers)
            made = "; ".join([*map(_said, result.about.items()), *map(_said, result.counts.items()), *result.notes])
            rows.append([label, name, numbers, made])
            places.append(index)
    head = ["model", "benchmark", "all numbers", "made with"]
    return Table(head, rows, labels=frozenset({0, 1}), texts=frozenset({2, 3}), methods=places, sortable=True)


def _said(pair: tuple[str, object]) -> str:
    """
    >>> _said(("template_hash", ["06"])), _said(("sampling", {"temperature": 0.0}))
    ('template hash 06', 'sampling temperature 0.0')
    """
    key, value = pair
    if isinstance(value, Mapping):
        value = " ".join(f"{name} {one}" for name, one in value.items())
    elif isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"{key.replace('_', ' ')} {value}"

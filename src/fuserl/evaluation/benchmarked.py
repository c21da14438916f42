"""What a comparison shows of benchmarks: models by benchmarks beside published rows, and how each number was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fuserl.evaluation.benchmarks.protocol import Number, Result
from fuserl.evaluation.benchmarks.results import heads
from fuserl.evaluation.comparing import Comparison
from fuserl.evaluation.methods import Method
from fuserl.evaluation.suite_table import Row, columns_of, heading, rows_of, told
from fuserl.evaluation.tables import write_rows
from fuserl.reporting.report import Section, Table, Text
from fuserl.reporting.statistics import bootstrap_ends

NOTE = (
    "Brackets are 95 % intervals: of one run as its benchmark makes them, of several over seeds. Published rows are other "
    "people's numbers, with their judge, their day and their decoding; a difference to them is not tested."
)


def table_of(comparison: Comparison, published: Sequence[Row] = ()) -> list[Row]:
    """Methods with their benchmarks; empty where none was evaluated."""
    ours = [Row(method.label, _cells(method), False) for method in comparison.methods]
    return rows_of([row for row in ours if row.cells], published) if any(row.cells for row in ours) else []


def sections_of(comparison: Comparison, rows: Sequence[Row], colours: Sequence[str]) -> list[Section]:
    """For the page; none where nothing was evaluated."""
    if not rows:
        return []
    names, numbers = columns_of(rows), {method.label: index for index, method in enumerate(comparison.methods)}
    body = [
        [row.label + (" (published)" if row.published else ""), *(told(row.cells.get(name)) for name in names)]
        for row in rows
    ]
    table = Table(
        ["model", *(heading(name, rows) for name in names)],
        body,
        labels=frozenset({0}),
        methods=[None if row.published else numbers[row.label] for row in rows],
        colours=["" if row.published else colours[numbers[row.label]] for row in rows],
        sortable=True,
    )
    return [
        Section("Benchmarks", [Text(NOTE, note=True), table]),
        Section("How the numbers were made", [_made(comparison)]),
    ]


def write_benchmarks(path: Path, comparison: Comparison, published: Sequence[Row]) -> None:
    """`benchmarks.csv`: a row a number, in full, with how it was made."""
    rows = []
    for method in comparison.methods:
        for run in method.runs:
            for name, result in run.benchmarks.items():
                made = {"run": str(run.path), "about": json.dumps(result.about, default=str, sort_keys=True)}
                counts = {f"num_{key}": value for key, value in result.counts.items()}
                for number in result.numbers:
                    fields = {"model": method.label, "seed": run.seed, "published": False, "benchmark": name}
                    rows.append(fields | _fields(number) | counts | made)
    for row in published:
        for name, number in row.cells.items():
            rows.append({"model": row.label, "published": True, "benchmark": name} | _fields(number))
    if rows:
        write_rows(path, rows)


def _fields(number: Number) -> dict[str, object]:
    ends = {"low": number.low, "high": number.high, "interval_over": number.over}
    return {"number": number.name, "value": number.value} | ends


def _cells(method: Method) -> dict[str, Number]:
    """A method's numbers by benchmark, those that all its runs have."""
    tables = [heads(run.benchmarks) for run in method.runs]
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


def _made(comparison: Comparison) -> Table:
    """A row a model and benchmark: judge, day, decoding, counts, notes."""
    rows, methods = [], []
    for index, method in enumerate(comparison.methods):
        for run in method.runs:
            for name, result in run.benchmarks.items():
                rows.append(
                    [
                        method.label,
                        name,
                        _numbers(result),
                        _plain(result.about),
                        _plain(result.counts),
                        " ".join(result.notes),
                    ]
                )
                methods.append(index)
    head = ["model", "benchmark", "all numbers", "made with", "counts", "notes"]
    return Table(head, rows, labels=frozenset({0, 1}), texts=frozenset({2, 3, 4, 5}), methods=methods, sortable=True)


def _numbers(result: Result) -> str:
    return ", ".join(f"{number.name} {told(number)}" for number in result.numbers)


def _plain(named: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in named.items())

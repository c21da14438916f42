"""Models by benchmarks, ours beside published ones: for the terminal, for pages, for spreadsheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from fuserl.evaluation.benchmarks.protocol import Number, Result
from fuserl.evaluation.benchmarks.results import AVERAGE, average, heads
from fuserl.evaluation.published import published


class Row(NamedTuple):
    """A model in the table."""

    label: str
    cells: Mapping[str, Number]  # by benchmark; absent: not measured
    published: bool  # somebody else's numbers


def rows_of(ours: Sequence[Row], theirs: Sequence[Row] = ()) -> list[Row]:
    """Ours with their averages, then published ones, averaged over the benchmarks that ours have."""
    names = columns_of(ours)
    return [*(_with_average(row, list(row.cells)) for row in ours), *(_with_average(row, names) for row in theirs)]


def row_of(label: str, found: Mapping[str, Result]) -> Row:
    """A model's results, of which the first numbers are shown."""
    return Row(label, heads(found), False)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The benchmarks that one of our models has been measured on, in the order of the first that has them."""
    names = dict.fromkeys(name for row in rows if not row.published for name in row.cells if name != AVERAGE)
    average = [AVERAGE] if any(AVERAGE in row.cells for row in rows) and len(names) > 1 else []
    return [*names, *average]


def told(number: Number | None) -> str:
    """A number with its interval: `63.3 [60.1, 66.4]`; a dash where nothing is known.

    >>> told(Number("accuracy", 63.34, 60.1, 66.4)), told(Number("score", 9.0)), told(None)
    ('63.3 [60.1, 66.4]', '9.0', '–')
    """
    if number is None or number.value is None:
        return "\N{EN DASH}"
    digits = 1 if abs(number.value) >= 10 or number.value == round(number.value, 1) else 2
    if number.low is None or number.high is None:
        return f"{number.value:.{digits}f}"
    return f"{number.value:.{digits}f} [{number.low:.{digits}f}, {number.high:.{digits}f}]"


def heading(name: str, rows: Sequence[Row]) -> str:
    """A benchmark with what its number is, `gsm8k accuracy`."""
    kinds = {row.cells[name].name for row in rows if name in row.cells and not row.published} - {name}
    return f"{name} {kinds.pop()}" if len(kinds) == 1 else name


def for_terminal(rows: Sequence[Row]) -> TerminalTable:
    """What there is more of, benchmarks or models, goes down; what there is less of goes across."""
    names = columns_of(rows)
    labels = [row.label + (" (published)" if row.published else "") for row in rows]
    cells = [[told(row.cells.get(name)) for name in names] for row in rows]
    down, across, first = [heading(name, rows) for name in names], labels, "benchmark"
    if len(labels) > len(names):
        down, across, first = across, down, "model"
    else:
        cells = list(map(list, zip(*cells, strict=True)))
    table = TerminalTable(title="benchmarks", title_justify="left")
    table.add_column(first)
    for name in across:
        table.add_column(TerminalText(name), justify="right")
    for name, line in zip(down, cells, strict=True):
        table.add_row(TerminalText(name), *map(TerminalText, line))
    return table


def _with_average(row: Row, names: Sequence[str]) -> Row:
    mean = average([row.cells.get(name) for name in names])
    return row._replace(cells={**row.cells, AVERAGE: mean}) if mean else row


def published_rows(names: Sequence[str]) -> list[Row]:
    """Rows of papers.

    Raises:
        FuserlError: there is no such row.
    """
    return [Row(f"{row.title}: {row.label}", row.cells, True) for row in published(names)]

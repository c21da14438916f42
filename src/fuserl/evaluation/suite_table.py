"""Models by benchmarks, ours beside published ones: for the terminal, for pages, for spreadsheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from fuserl.evaluation.benchmarks.protocol import Number, Result
from fuserl.evaluation.benchmarks.results import AVERAGE, average, heads


class Row(NamedTuple):
    """A model in the table."""

    label: str
    cells: Mapping[str, Number]  # by benchmark; absent: not measured
    published: bool  # somebody else's numbers


def rows_of(ours: Sequence[Row], published: Sequence[Row] = ()) -> list[Row]:
    """Ours with their averages, then published ones."""
    return [*map(_with_average, ours), *published]


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
    """A row a benchmark, a column a model: models are few, benchmarks are many."""
    table = TerminalTable(title="benchmarks", title_justify="left")
    table.add_column("benchmark")
    for row in rows:
        table.add_column(TerminalText(row.label + (" (published)" if row.published else "")), justify="right")
    for name in columns_of(rows):
        table.add_row(TerminalText(heading(name, rows)), *(TerminalText(told(row.cells.get(name))) for row in rows))
    return table


def _with_average(row: Row) -> Row:
    mean = average(row.cells.values())
    return row._replace(cells={**row.cells, AVERAGE: mean}) if mean else row


def published_rows(names: Sequence[str]) -> list[Row]:
    """See `published.published`."""
    return []

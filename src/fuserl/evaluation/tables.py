"""A comparison as rows: for the terminal, for CSV files that a spreadsheet may open, and for the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from fuserl.evaluation.comparing import Comparison, Row
from fuserl.evaluation.measures import MAIN, Metric, value
from fuserl.evaluation.methods import Method
from fuserl.evaluation.runs import LeftOut
from fuserl.records.manifest import written_atomically

SIGNS = {
    "better": "▲",
    "worse": "▼",
    "higher": "▲",
    "lower": "▼",
    "not told apart": "○",
    "baseline": "◆",
    "not tested": "–",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins so


def further(comparison: Comparison) -> list[str]:
    """The main metrics beside the one compared that at least one run has."""
    runs = [run for method in comparison.methods for run in method.runs]
    return [
        name
        for name in MAIN
        if name != comparison.metric.name and any(value(run, Metric(name, "last")) is not None for run in runs)
    ]


def mean_of(method: Method, name: str) -> float | None:
    """A metric's mean over a method's seeds; None where one lacks it."""
    found = [value(run, Metric(name, "last")) for run in method.runs]
    return None if any(number is None for number in found) else sum(found) / len(found)  # type: ignore[arg-type]


def digits(comparison: Comparison) -> int:
    """Decimals that show two figures of the narrowest interval."""
    reach = [
        high - low
        for row in comparison.rows
        for low, high in ((row.low, row.high), (row.difference_low, row.difference_high))
        if low is not None and high is not None and high > low
    ]
    return min(6, max(2, 1 - math.floor(math.log10(min(reach) / 2)))) if reach else 4


def span(mean: float | None, low: float | None, high: float | None, decimals: int) -> str:
    """`0.512 [0.400, 0.624]`, or what is known of it."""
    if mean is None:
        return ""
    if low is None or high is None:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def p_text(p: float | None) -> str:
    """
    >>> p_text(0.00001), p_text(0.0432), p_text(None)
    ('<0.001', '0.043', '')
    """
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def signed(row: Row) -> str:
    """The verdict with its sign."""
    return f"{SIGNS[row.verdict]} {row.verdict}" if row.verdict else ""


def cells(row: Row, decimals: int) -> list[str]:
    """Method, seeds, mean, difference, p, p after Holm, verdict."""
    return [
        row.method.label,
        str(len(row.method.runs)),
        span(row.mean, row.low, row.high, decimals),
        span(row.difference, row.difference_low, row.difference_high, decimals),
        p_text(row.p),
        p_text(row.p_holm),
        signed(row),
    ]


def header(comparison: Comparison) -> list[str]:
    """Of `cells`."""
    return ["method", "seeds", comparison.metric.name, "difference", "p", "p (Holm)", "verdict"]


def short(value: float | None) -> str:
    """A number of a further column."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def for_terminal(comparison: Comparison) -> TerminalTable:
    """The best first; names come from settings and stay plain."""
    table = TerminalTable(
        title=f"{comparison.metric.told}, mean over seeds with 95 % intervals", title_justify="left", box=None
    )
    kept = [0, 1, 2] if comparison.baseline is None else range(7)
    for column in kept:
        justify = "left" if column in (0, 6) else "right"
        table.add_column(header(comparison)[column], justify=justify, overflow="fold", no_wrap=column != 0)
    for row in comparison.rows:
        found = cells(row, digits(comparison))
        style = "bold" if row.verdict == "baseline" else ""
        table.add_row(*(TerminalText(printable(found[column])) for column in kept), style=style)
    return table


def printable(text: str) -> str:
    """A text that does nothing to a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def write_table(path: Path, comparison: Comparison) -> None:
    """`table.csv`: a row a method, numbers in full."""
    names = further(comparison)
    rows = []
    for row in comparison.rows:
        fields = {
            "method": row.method.label,
            "baseline": row.method is comparison.baseline,
            "seeds": len(row.method.runs),
            "metric": comparison.metric.name,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "interval_over": row.over,
            "difference": row.difference,
            "difference_low": row.difference_low,
            "difference_high": row.difference_high,
            "p": row.p,
            "p_holm": row.p_holm,
            "test": row.test,
            "verdict": row.verdict,
        }
        rows.append(fields | dict(row.method.settings) | {name: mean_of(row.method, name) for name in names})
    write_rows(path, rows)


def write_runs(path: Path, comparison: Comparison, left_out: Sequence[LeftOut]) -> None:
    """`runs.csv`: a row a run, those that are not in the numbers with the reason."""
    names = [comparison.metric.name, *further(comparison)]
    rows: list[dict[str, Any]] = []
    for method in comparison.methods:
        for run in method.runs:
            at = {name: comparison.metric.at if name == comparison.metric.name else "last" for name in names}
            numbers = {name: value(run, Metric(name, at[name])) for name in names}
            fields = {"run": str(run.path), "method": method.label, "seed": run.seed, "status": "complete", "why": ""}
            rows.append(fields | dict(method.settings) | numbers)
    rows += [{"run": str(one.path), "status": "left out", "why": one.why} for one in left_out]
    write_rows(path, rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with every column that a row has, in which no cell is a formula."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with written_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([harmless(name) for name in names])
        writer.writerows([[harmless(row.get(name)) for name in names] for row in rows])


def harmless(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers.

    >>> harmless("=cmd|' /C calc'!A0"), harmless("-0.5"), harmless(-0.5), harmless(None)
    ("'=cmd|' /C calc'!A0", '-0.5', '-0.5', '')
    """
    text = "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
    if not text.lstrip(" ").startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text

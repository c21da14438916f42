"""One self-contained HTML page: tables, interactive figures, texts. Model-written text is hostile and stays text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

STYLE = """
:root { color-scheme: light; --ink: #1c1917; --faint: #78716c; --line: #e7e5e4; --best: #ecfdf5; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p { max-width: 46rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
td.best { background: var(--best); font-weight: 600; } td.text { white-space: pre-wrap; text-align: left; min-width: 16rem; overflow-wrap: anywhere; }
"""
# The page may run its own inline scripts (plotly) and load nothing from anywhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; `best` marks (row, column) cells, `texts` columns of running text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    texts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    heading: str
    parts: Sequence[Text | Table | go.Figure]


def write_report(path: Path, *, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page; it works offline and alone."""
    body = "".join(f"<h2>{escape(section.heading)}</h2>" + "".join(map(_part, section.parts)) for section in sections)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{escape(title)}</h1><p>{escape(lead)}</p>{body}</body></html>"
    )
    part = path.with_suffix(".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _part(part: Text | Table | go.Figure) -> str:
    if isinstance(part, Text):
        return f"<p>{escape(part.text)}</p>"
    if isinstance(part, Table):
        return _table(part)
    return _figure(part)


def _table(table: Table) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_kind((r, c) in table.best, c in table.texts)}>{escape(cell)}</td>" for c, cell in enumerate(row)
        )
        + "</tr>"
        for r, row in enumerate(table.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _kind(best: bool, text: bool) -> str:
    return ' class="best"' if best else ' class="text"' if text else ""


def _figure(figure: go.Figure) -> str:
    """Plotly reads names as a small HTML of its own, so every text in a figure is escaped before."""
    return escaped(figure).to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )


def escaped(figure: go.Figure) -> go.Figure:
    """A copy whose title, trace names and categories are plain text."""
    copy = go.Figure(figure)
    if copy.layout.title.text:
        copy.layout.title.text = escape(copy.layout.title.text)
    for trace in copy.data:
        if trace.name:
            trace.name = escape(trace.name)
        for axis in ("x", "y"):
            values = getattr(trace, axis, None)
            if values is not None and len(values) and isinstance(values[0], str):
                setattr(trace, axis, [escape(value) for value in values])
    return copy

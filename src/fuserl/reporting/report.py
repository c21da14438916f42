"""One self-contained HTML page: tables, interactive figures, texts. Model-written text is hostile and stays text.

Three walls stand before a text that wants to act. It is escaped where it becomes HTML; what figures show is data, in JSON
without any `<`, and escaped once more for plotly, which reads names as a small HTML of its own; and the page's policy runs
the two scripts of this package, known by their hashes, and nothing else, so that even an element that got through could
neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from fuserl.records.manifest import write_text_atomically

HERE = Path(__file__).parent
OURS = ("hovertemplate", "texttemplate")  # written by us, with plotly's own marks


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is a small one."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    `best` marks (row, column) cells, `texts` columns of running text, `labels` columns of names that may break. `methods`
    says which method (its place in the page's filter) a row is about, `colours` what stands before its first cell,
    `marked` which rows stand out. `sortable` tables are sorted by a click on a column's name.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    texts: frozenset[int] = frozenset()
    labels: frozenset[int] = frozenset()
    methods: Sequence[int | None] = ()
    colours: Sequence[str] = ()
    marked: frozenset[int] = frozenset()
    sortable: bool = False


@dataclass(frozen=True)
class Grid:
    """Figures side by side where there is room."""

    figures: Sequence[go.Figure]


@dataclass(frozen=True)
class Filter:
    """A field that hides the rows and traces of methods whose names do not match; traces say theirs in `meta`.

    It stays in sight, and with its colours it is the legend of all figures.
    """

    names: Sequence[str]
    colours: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    heading: str
    parts: Sequence[Text | Table | Grid | Filter | go.Figure] = field(default_factory=tuple)


def write_report(path: Path, *, title: str, lead: str, sections: Sequence[Section], wide: bool = False) -> None:
    """Write the page; it works offline and alone."""
    body = "".join(
        (f"<h2>{escape(section.heading)}</h2>" if section.heading else "") + "".join(map(_part, section.parts))
        for section in sections
    )
    scripts = scripts_of_pages()
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}"><link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width"><style>{(HERE / "page.css").read_text(encoding="utf-8")}</style>'
        f"<script>{scripts[0]}</script></head>"
        f"<body{' class=wide' if wide else ''}><h1>{escape(title)}</h1><p>{escape(lead)}</p>{body}"
        f"<script>{scripts[1]}</script></body></html>"
    )
    write_text_atomically(path, page)


@cache
def scripts_of_pages() -> tuple[str, str]:
    """plotly and our own; browsers see line ends as one character, and hash what they see."""
    return get_plotlyjs().replace("\r\n", "\n"), (HERE / "page.js").read_text(encoding="utf-8")


def policy(scripts: Sequence[str]) -> str:
    """The page runs these inline scripts and loads nothing from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _part(part: Text | Table | Grid | Filter | go.Figure) -> str:
    if isinstance(part, Text):
        return f"<p{' class=note' if part.note else ''}>{escape(part.text)}</p>"
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Grid):
        return f'<div class="grid">{"".join(f"<div>{_figure(one)}</div>" for one in part.figures)}</div>'
    return _filter(part) if isinstance(part, Filter) else _figure(part)


def _filter(part: Filter) -> str:
    chips = "".join(
        f'<span class="chip" data-method="{index}">{_swatch(colour)}{escape(name)}</span>'
        for index, (name, colour) in enumerate(zip(part.names, part.colours, strict=bool(part.colours)))
    )
    return (
        '<div class="filter"><input type="search" aria-label="Filter the methods" placeholder="Filter the methods" '
        f'autocomplete="off"><output></output><div class="chips">{chips}</div>{_data(list(part.names))}</div>'
    )


def _swatch(colour: str) -> str:
    return f'<span class="swatch" style="background:{escape(colour)}"></span>'


def _table(table: Table) -> str:
    header = "".join(
        f'<th scope="col"{_kind(table, -1, column)}>{f"<button>{escape(cell)}</button>" if table.sortable else escape(cell)}</th>'
        for column, cell in enumerate(table.header)
    )
    body = "".join(_row(table, number) for number in range(len(table.rows)))
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(table: Table, number: int) -> str:
    method = table.methods[number] if table.methods else None
    about = "" if method is None else f' data-method="{method:d}"'
    marked = ' class="marked"' if number in table.marked else ""
    swatch = _swatch(table.colours[number]) if table.colours else ""
    cells = "".join(
        f"<td{_kind(table, number, c)}>{swatch if c == 0 else ''}{escape(cell)}</td>"
        for c, cell in enumerate(table.rows[number])
    )
    return f"<tr{about}{marked}>{cells}</tr>"


def _kind(table: Table, row: int, column: int) -> str:
    if (row, column) in table.best:
        return ' class="best"'
    return ' class="text"' if column in table.texts else ' class="label"' if column in table.labels else ""


def _figure(figure: go.Figure) -> str:
    """Drawn by `page.js` from the JSON that stands behind it."""
    height = int(figure.layout.height or 400)
    return f'<div class="figure" style="height:{height}px"></div>{_data(escaped(json.loads(figure.to_json())))}'


def _data(value: Any) -> str:
    """JSON in a script element that runs nothing: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&'":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{text}</script>'


def escaped(node: Any) -> Any:
    """A figure's JSON in which every text is plain text to plotly, which reads a small HTML of its own in all of them."""
    if isinstance(node, str):
        return escape(node, quote=False)
    if isinstance(node, Mapping):
        return {key: value if key in OURS else escaped(value) for key, value in node.items()}
    return [escaped(value) for value in node] if isinstance(node, list) else node

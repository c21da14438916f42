"""`report.html`: every count of `report.json`, with figures and examples, for a person. All texts are shown as texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from fuserl.curation.ledger import totals
from fuserl.curation.texts import excerpt
from fuserl.reporting.figures import histogram
from fuserl.reporting.report import Section, Table, Text, write_report

FIGURES = 8  # domains whose rewards and gaps are drawn
LISTED = 50  # rows of a table that a rule found


def page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page of a report."""
    prompts, responses = totals(report["steps"][0])[0][0], totals(report["steps"][0])[1][0]
    written = sum(sum(side["written"]["prompts"].values()) for side in report["sides"].values())
    sections = [
        Section("From what was read to what is clean", [_steps(report), _by_domain(report), _by_source(report)]),
        Section("Split, protocol, mixture", list(_sides(report))),
        Section("What the rules found before anything was dropped", list(_findings(report))),
        Section("Examples of what was dropped", list(_examples(report))),
        Section("Who owns the best response", list(_wins(report))),
        Section("Rewards", list(_rewards(report))),
        Section("Gaps between a source's best and worst response", list(_gaps(report))),
        Section("Lengths", list(_lengths(report))),
        Section("Temperature of the weights", list(_entropies(report))),
        Section("Inputs", list(_inputs(report))),
    ]
    lead = f"{prompts:,} prompts with {responses:,} responses read, {written:,} prompts written. Counts are those of report.json."
    write_report(path, title="fuserl select", lead=lead, sections=[one for one in sections if one.parts])


def terminal(report: Mapping[str, Any]) -> list[TerminalTable]:
    """What the person at the terminal is shown: a row a step, and a row a data set that was written."""
    steps = TerminalTable("step", "prompts in", "dropped", "out", "responses in", "dropped", "with their prompt", "out")
    for entry in report["steps"]:
        prompts, responses = totals(entry)
        _add(steps, [entry["step"], *map(_number, prompts + responses)])
    sides = TerminalTable("data set", "prompts given", "kept", "written", "responses", "pairs")
    for name, side in report["sides"].items():
        _add(sides, [name, *map(_number, _of_side(side))])
    return [steps, sides]


def _add(table: TerminalTable, cells: Sequence[str]) -> None:
    """Names come from data: no markup, and nothing that acts on a terminal."""
    table.add_row(*(TerminalText(excerpt(cell)) for cell in cells))


def _of_side(side: Mapping[str, Any]) -> list[int]:
    given, kept, written = (sum(side[name]["prompts"].values()) for name in ("given", "kept", "written"))
    responses = sum(sum(of.values()) for of in side["written"]["responses"].values())
    return [given, kept, written, responses, sum(side["num_pairs"].values())]


def _steps(report: Mapping[str, Any]) -> Table:
    header = ["step", "prompts in", "dropped", "out", "responses in", "dropped", "with their prompt", "out"]
    rows = [[entry["step"], *map(_number, totals(entry)[0] + totals(entry)[1])] for entry in report["steps"]]
    return Table(header, rows)


def _by_domain(report: Mapping[str, Any]) -> Table:
    rows = [
        [domain, entry["step"], *map(_number, counts)]
        for domain in sorted({domain for entry in report["steps"] for domain in entry["prompts"]})
        for entry in report["steps"]
        if (counts := entry["prompts"].get(domain)) and counts[1]
    ]
    return Table(["domain", "step", "prompts in", "dropped", "out"], rows)


def _by_source(report: Mapping[str, Any]) -> Table:
    rows = [
        [source, domain, entry["step"], *map(_number, counts)]
        for entry in report["steps"]
        for domain, of in entry["responses"].items()
        for source, counts in of.items()
        if counts[1] or counts[2]
    ]
    return Table(["source", "domain", "step", "responses in", "dropped", "with their prompt", "out"], sorted(rows))


def _sides(report: Mapping[str, Any]) -> Iterable[Text | Table]:
    header = ["data set", "prompts given", "kept", "written", "responses", "pairs"]
    yield Table(header, [[name, *map(_number, _of_side(side))] for name, side in report["sides"].items()])
    if report["together"]:
        yield Text(f"{report['together']:,} prompts stand where another that says nearly the same belongs.")
    for what, key in (("why prompts went", "dropped"), ("why a source has no pair", "no_pair")):
        rows = [
            [name, domain, why, _number(number)]
            for name, side in report["sides"].items()
            for domain, why, number in side[key]
        ]
        if rows:
            yield Table(["data set", "domain", what, "number"], rows, texts=frozenset({2}))
    rows = [
        [name, part, *map(_number, counts)]
        for name, side in report["sides"].items()
        for part, counts in side["mixture"].items()
    ]
    if rows:
        yield Table(["data set", "part", "prompts asked for", "there", "given"], rows)


def _findings(report: Mapping[str, Any]) -> Iterable[Text | Table]:
    for rule, tables in report["findings"].items():
        for name, rows in tables.items():
            if not rows:
                continue
            header = list(dict.fromkeys(key for row in rows for key in row))
            yield Text(f"{rule}: {name}, {len(rows):,} rows" + (f", the first {LISTED}" if len(rows) > LISTED else ""))
            cells = [[_cell(row.get(key)) for key in header] for row in rows[:LISTED]]
            texts = {place for row in cells for place, cell in enumerate(row) if len(cell) > 40}
            yield Table(list(map(str, header)), cells, texts=frozenset(texts))


def _examples(report: Mapping[str, Any]) -> Iterable[Text | Table]:
    for rule, examples in report["examples"].items():
        if examples:
            yield Text(f"{rule}:")
            rows = [
                [one["prompt_id"], one["domain"], _cell(one["source"]), one["why"], one["prompt"], _cell(one["text"])]
                for one in examples
            ]
            header = ["prompt", "domain", "source", "why", "what it asks", "what was answered"]
            yield Table(header, rows, texts=frozenset({3, 4, 5}))


def _wins(report: Mapping[str, Any]) -> Iterable[Table]:
    for domain, shares in report["measures"]["win_share"].items():
        by_share = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        yield Table(
            [f"source, {domain}", "share of best responses"], [[name, f"{share:.2%}"] for name, share in by_share]
        )
    rows = report["measures"]["verdicts"]
    if rows:
        yield Table(["domain", "source", "verdict", "responses"], [[*row[:3], _number(row[3])] for row in rows])


def _largest(report: Mapping[str, Any]) -> list[str]:
    return [domain for domain, _ in Counter(report["clean"]["prompts"]).most_common(FIGURES)]


def _rewards(report: Mapping[str, Any]) -> Iterable[Any]:
    for domain in _largest(report):
        found = report["measures"]["rewards"].get(domain)
        if found:
            yield histogram(found["edges"], found["counts"], title=_title(domain), x="reward")


def _gaps(report: Mapping[str, Any]) -> Iterable[Any]:
    for domain in _largest(report):
        found, window = report["measures"]["gaps"].get(domain), report["windows"].get(domain, [])
        if found:
            title = (
                f"{_title(domain)}; dashed: the window of pairs"
                if any(w is not None for w in window)
                else _title(domain)
            )
            yield histogram(found["edges"], found["counts"], title=title, x="best less worst reward", window=window)


def _lengths(report: Mapping[str, Any]) -> Iterable[Table]:
    for unit in ("characters", "tokens"):
        found = report["measures"][unit]
        if found:
            rows = [[source, *(f"{value:,.0f}" for value in numbers.values())] for source, numbers in found.items()]
            yield Table([f"source, {unit} a response", *next(iter(found.values()))], rows)


def _entropies(report: Mapping[str, Any]) -> Iterable[Text | Table]:
    for name, side in report["sides"].items():
        found = side["entropies"]
        if found and name == "sft/train":
            yield Text(
                f"How evenly softmax(reward / τ) weighs the responses that SFT keeps of a prompt: 1 is uniform, 0 is one response "
                f"alone. Their rewards span {found['median_range']:.4g} at the median."
            )
            yield Table(["τ", "evenness"], [[tau, f"{value:.3f}"] for tau, value in found["entropy"].items()])


def _inputs(report: Mapping[str, Any]) -> Iterable[Table]:
    header = ["input", "rows", "groups", "left out", "path", "SHA-256"]
    yield Table(
        header,
        [
            [name, *(_number(one[key]) for key in ("rows", "groups", "left_out")), one["path"], one["digest"][:16]]
            for name, one in report["inputs"].items()
        ],
        texts=frozenset({4}),
    )
    if report["bad_rows"]:
        rows = [[excerpt(cell, 200) for cell in row] for row in report["bad_rows"][:LISTED]]
        yield Table(["input", "where", "what was left out"], rows, texts=frozenset({1, 2}))


def _title(domain: str) -> str:
    """Of a figure: plotly reads titles as HTML, so what comes from data is escaped there (`report.escaped`)."""
    return excerpt(domain)


def _number(value: int) -> str:
    return f"{value:,}"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

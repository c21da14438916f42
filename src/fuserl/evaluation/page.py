"""`index.html` of a comparison: tables, figures, answers. Texts that models wrote are shown as texts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuserl.evaluation import drawn
from fuserl.evaluation.benchmarked import sections_of
from fuserl.evaluation.comparing import Comparison, by_domain
from fuserl.evaluation.measures import Metric, shared_by_all, value
from fuserl.evaluation.runs import Answer, LeftOut, Run
from fuserl.evaluation.strokes import styles
from fuserl.evaluation.suite_table import Row
from fuserl.evaluation.tables import cells, digits, further, header, mean_of, short
from fuserl.reporting.report import Filter, Grid, Section, Table, Text, write_report

LONGEST = 1200  # signs of a text that the page shows


def write_page(
    path: Path,
    comparison: Comparison,
    left_out: Sequence[LeftOut],
    *,
    heat: Sequence[str],
    answers: int,
    benchmarks: Sequence[Row] = (),
) -> None:
    """Write the page.

    Args:
        heat: two settings to draw the metric over; empty draws none.
        answers: prompts whose answers are shown.
        benchmarks: the table of benchmarks; empty where nothing was evaluated.
    """
    colours = [style.colour for style in styles(comparison)]
    sections = [
        Section("", [Filter([method.label for method in comparison.methods], colours)]),
        Section("Methods", [_methods(comparison), *_notes(comparison), Grid(drawn.intervals(comparison))]),
        *sections_of(comparison.runs_by_label, benchmarks, colours),
        Section("Validation", [_note(BAND), Grid(drawn.curves(comparison))]),
        Section("Training against validation", [_note(GAP), Grid(drawn.gaps(comparison))]),
        Section("Preferences", [Grid([*drawn.by_source(comparison), *drawn.logps(comparison)])]),
        Section("Who teaches", [Grid(drawn.weights(comparison))]),
        Section("Domains", [Grid(_domains(comparison))]),
        Section("Two settings", [Grid(drawn.heat(comparison, heat) if heat else [])]),
        Section("Answers", list(_answers(comparison, answers))),
        Section("Runs", [_runs(comparison), *_left_out(left_out)]),
    ]
    write_report(path, title="Comparison of runs", lead=_lead(comparison, left_out), wide=True,
                 sections=[section for section in sections if _shows(section)])  # fmt: skip


BAND = "Lines are means over seeds, bands reach from the lowest to the highest seed."
GAP = (
    "Training values are means of what was logged since the last validation. A gap that grows while validation stops "
    "improving is overfitting."
)


def _shows(section: Section) -> bool:
    return any(part.figures if isinstance(part, Grid) else not isinstance(part, Text) for part in section.parts)


def _note(text: str) -> Text:
    return Text(text, note=True)


def _lead(comparison: Comparison, left_out: Sequence[LeftOut]) -> str:
    num_runs = sum(len(method.runs) for method in comparison.methods)
    over = f", on {comparison.num_prompts:,} prompts" if comparison.num_prompts else ""
    against = (
        f"Tests are against {comparison.baseline.label}."
        if comparison.baseline
        else "No baseline was named, so nothing is tested: name one with `baseline=...`."
    )
    best = comparison.rows[0]
    apart = f"{len(left_out)} folders are not in the numbers, see the end. " if left_out else ""
    return (
        f"{len(comparison.methods)} methods, {num_runs} runs, compared by {comparison.metric.told}{over}. {against} "
        f"{apart}Ahead by its mean: {best.method.label}."
    )


def _methods(comparison: Comparison) -> Table:
    names = further(comparison)
    decimals, kept = digits(comparison), [0, 1, 2] if comparison.baseline is None else list(range(7))
    rows = []
    for row in comparison.rows:
        own = cells(row, decimals)
        rows.append([*(own[column] for column in kept), *(short(mean_of(row.method, name)) for name in names)])
    return Table(
        [*(header(comparison)[column] for column in kept), *names],
        rows,
        labels=frozenset({0}),
        methods=range(len(rows)),
        colours=[style.colour for style in styles(comparison)],
        marked=frozenset(index for index, row in enumerate(comparison.rows) if row.method is comparison.baseline),
        sortable=True,
    )


def _notes(comparison: Comparison) -> Iterator[Text]:
    rows = comparison.rows
    over = " · ".join(dict.fromkeys(row.over for row in rows))
    yield _note(
        f"Brackets are 95 % intervals of the mean, over {over}. Further columns are means over seeds, at the last step."
    )
    tests = dict.fromkeys(row.test for row in rows if row.test)
    if tests:
        yield _note(
            f"Tests against the baseline: {' · '.join(tests)}. p (Holm) is corrected for {sum(row.p is not None for row in rows)} "
            "comparisons; below 0.05 a method is called better or worse, otherwise the two were not told apart, which is not "
            "to say that they are alike."
        )
    if comparison.metric.at == "best":
        yield _note(
            "The best step of each run was picked by this very metric: means are flattering, for all methods alike."
        )


def _domains(comparison: Comparison):
    runs = [run for method in comparison.methods for run in method.runs]
    names = shared_by_all(runs)
    for metric in dict.fromkeys((comparison.metric.name, "test/score", "val/accuracy", "val/nll")):
        found = sorted(name.removeprefix(f"{metric}/domain/") for name in names if name.startswith(f"{metric}/domain/"))
        if found:
            return drawn.domains(comparison, by_domain(comparison, found, metric), metric)
    return []


def _answers(comparison: Comparison, number: int) -> Iterator[Text | Table]:
    """What each method's first seed answered, of the test or, where a run had none, of the probe."""
    firsts = [min(method.runs, key=lambda run: run.seed) for method in comparison.methods]
    tested = all(run.answers for run in firsts)
    tables = [_first_answers(run.answers if tested else _probe(run)) for run in firsts]
    prompts = _spread([answer for table in tables[:1] for answer in table.values()], number)
    rows, methods = [], []
    for prompt in prompts:
        for index, (method, table) in enumerate(zip(comparison.methods, tables, strict=True)):
            found = table.get(prompt.prompt_id)
            if found is not None:
                rows.append([_cut(prompt.prompt), method.label, short(found.score), _cut(found.answer)])
                methods.append(index)
    if rows:
        what = "test" if tested else "probe at its last step"
        yield _note(
            f"First answers to {len(prompts)} prompts of the {what}, from each method's lowest seed. The prompts were drawn by "
            "hash, domain by domain, not by what was answered."
        )
        yield Table(["prompt", "method", "score", "answer"], rows, texts=frozenset({0, 3}), labels=frozenset({1}),
                    methods=methods, sortable=True)  # fmt: skip


def _probe(run: Run) -> list[Answer]:
    try:
        return run.probe
    except (OSError, ValueError, KeyError, TypeError):  # samples are an extra: a broken file takes no run out
        return []


def _first_answers(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {answer.prompt_id: answer for answer in sorted(answers, key=lambda answer: -answer.sample)}


def _spread(answers: Sequence[Answer], number: int) -> list[Answer]:
    """Some prompts, by hash, as evenly over domains as they go."""
    ordered = sorted(answers, key=lambda answer: hashlib.sha256(answer.prompt_id.encode()).digest())
    turns: dict[str, int] = {}
    ranked = []
    for answer in ordered:
        turn = turns[answer.domain] = turns.get(answer.domain, 0) + 1
        ranked.append((turn, answer.domain, answer))
    return [answer for _, _, answer in sorted(ranked, key=lambda one: one[:2])[:number]]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def _runs(comparison: Comparison) -> Table:
    names = further(comparison)
    top = os.path.commonpath([run.path.parent for method in comparison.methods for run in method.runs])
    rows, methods = [], []
    for index, method in enumerate(comparison.methods):
        for run in sorted(method.runs, key=lambda run: run.seed):
            numbers = [value(run, comparison.metric), *(value(run, Metric(name, "last")) for name in names)]
            rows.append([method.label, str(run.seed), *map(short, numbers), os.path.relpath(run.path, top)])
            methods.append(index)
    colours = [styles(comparison)[index].colour for index in methods]
    head = ["method", "seed", comparison.metric.name, *names, f"in {top}"]
    return Table(head, rows, labels=frozenset({0, len(head) - 1}), methods=methods, colours=colours, sortable=True)


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[Text | Table]:
    if left_out:
        yield _note("Not in the numbers:")
        yield Table(
            ["folder", "why"], [[str(one.path), one.why] for one in left_out], texts=frozenset({1}), sortable=True
        )

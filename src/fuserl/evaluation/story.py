"""`report.html` of a recipe: its stages, how they trained, and what benchmarks say of their models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuserl.evaluation.benchmarked import sections_of, table_of
from fuserl.evaluation.measures import Metric, value
from fuserl.evaluation.places import stages
from fuserl.evaluation.runs import Run, read_run
from fuserl.evaluation.tables import short
from fuserl.reporting import figures
from fuserl.reporting.report import Grid, Section, Table, write_report

COLUMNS = ("steps", "train_seconds", "val/nll", "val/accuracy", "test/score")  # of the table of stages
CURVES = {"train/loss": "Training loss", "val/nll": "Validation NLL", "val/accuracy": "Validation accuracy"}
FILE = "report.html"


def write_story(folder: Path) -> Path | None:
    """Write the page anew from what the stages' folders hold; None where no stage is finished.

    Args:
        folder: of a recipe, with a folder a stage.
    """
    found = {stage.name: read_run(stage) for stage in stages(folder)}
    runs = {name: run for name, run in found.items() if isinstance(run, Run)}
    if not runs:
        return None
    models = {name: (run,) for name, run in runs.items()}
    rows = table_of(models)
    drawn = _curves(runs)
    write_report(
        folder / FILE,
        title=f"Recipe: {folder.name}",
        wide=True,
        lead=_lead(list(found), runs),
        sections=[Section("Stages", [_stages(runs)]), *sections_of(models, rows), Section("Curves", [Grid(drawn)])],
    )
    return folder / FILE


def _lead(names: Sequence[str], runs: Mapping[str, Run]) -> str:
    evaluated = [name for name, run in runs.items() if run.benchmarks]
    told = f"Benchmarks: {', '.join(evaluated)}." if evaluated else "No model of it has seen a benchmark yet."
    return f"{len(names)} stages: {', '.join(names)}. {told}"


def _stages(runs: Mapping[str, Run]) -> Table:
    rows = []
    for name, run in runs.items():
        told: list[Any] = [value(run, Metric(column, "last")) for column in COLUMNS]
        objective = run.config.get("objective") or {}
        what = str(objective.get("name") or run.summary.get("verb") or "")
        rows.append([name, what, "" if told[0] is None else f"{told[0]:,.0f}", *map(short, told[1:])])
    return Table(["stage", "objective", *COLUMNS], rows, labels=frozenset({0}))


def _curves(runs: Mapping[str, Run]) -> list[Any]:
    drawn = []
    for column, title in CURVES.items():
        lines = {name: run.series[column] for name, run in runs.items() if column in run.series}
        if lines:
            drawn.append(figures.curves(lines, title=title, x="optimiser step", y=column))
    return drawn

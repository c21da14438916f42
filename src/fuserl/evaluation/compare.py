"""The verb `compare`: run folders in; a table, CSV files and one page out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import fuserl
from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarked import table_of, write_benchmarks
from fuserl.evaluation.comparing import Comparison, chosen_metric, compared
from fuserl.evaluation.measures import available
from fuserl.evaluation.methods import Method, method_named, methods_of, only_with
from fuserl.evaluation.page import write_page
from fuserl.evaluation.runs import LeftOut, Run, find_runs
from fuserl.evaluation.suite_table import for_terminal as terminal_of_benchmarks
from fuserl.evaluation.suite_table import published_rows
from fuserl.evaluation.tables import for_terminal, printable, write_runs, write_table
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import FREE, plain
from fuserl.terminal import say, say_table

LISTED = 10  # folders left out that the terminal names; all of them stand in runs.csv


def compare(cfg: DictConfig) -> Path:
    """Compare runs as `conf/compare.yaml` says.

    Returns:
        The folder written: `table.csv`, `runs.csv`, `index.html`, `manifest.json`.

    Raises:
        FuserlError: there is nothing to compare, or a name matches nothing; nothing has been written then.
    """
    given = plain(cfg)
    settings.require_whole(0, answers=given["answers"])
    found, left_out = find_runs(_texts(given["runs"], "runs"))
    found = only_with(found, given["only"]) if given["only"] else found
    metric = chosen_metric(found, given["metric"], given["at"])
    runs = [run for run in found if metric.name in available(run)]
    left_out += [LeftOut(run.path, f"it has no {metric.name}") for run in found if metric.name not in available(run)]
    methods = methods_of(runs, _texts(given["by"], "by"), _names(given["names"]))
    baseline = None if given["baseline"] is None else method_named(methods, str(given["baseline"]), "`baseline`")
    heat = _heat(given["heat"], methods)

    comparison = compared(methods, metric, baseline)
    told = published_rows(_texts(given["papers"], "papers"))
    benchmarks = table_of(comparison.runs_by_label, told)
    folder = _folder(given, runs)
    write_table(folder / "table.csv", comparison)
    write_runs(folder / "runs.csv", comparison, left_out)
    write_page(folder / "index.html", comparison, left_out, heat=heat, answers=given["answers"], benchmarks=benchmarks)
    write_benchmarks(folder / "benchmarks.csv", comparison.runs_by_label, told)
    _write_manifest(folder, given, comparison, left_out)
    if benchmarks:
        say_table(terminal_of_benchmarks(benchmarks))
    tell(comparison, left_out, folder)
    return folder


def _folder(given: Mapping[str, Any], runs: Sequence[Run]) -> Path:
    content = {"settings": given, "runs": sorted(str(run.path) for run in runs)}
    folder = Path(
        given["output"] or Path("runs") / settings.digest("compare", content, ["settings.output"])
    ).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FuserlError(
            f"the output folder cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="give another one with `output=DIR`",
        ) from error
    return folder


def _texts(value: Any, key: str) -> list[str]:
    """A list of texts; a single one stands for a list."""
    if value is None:
        return []
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | int | float) for text in texts):
        raise FuserlError("this must be a list of texts", where=f"`{key}`", hint=f"such as `{key}=[a,b]`")
    return [str(text) for text in texts]


def _names(value: Any) -> dict[str, str]:
    pairs = [text.rpartition(": ") for text in _texts(value, "names")]
    if wrong := [shown for label, _, shown in pairs if not label]:
        hint = """`'names=["objective=fusesft: FuseSFT"]'`: the label, a colon and a space, what to show"""
        raise FuserlError(f"`{wrong[0]}` names no label", where="`names`", hint=hint)
    return {label.strip(): shown.strip() for label, _, shown in pairs}


def _heat(value: Any, methods: Sequence[Method]) -> list[str]:
    """The two settings of the heat map; by themselves the first two that tell methods apart."""
    keys = list(methods[0].settings)
    if value is None:
        return keys[:2] if len(keys) >= 2 else []
    wanted = _texts(value, "heat")
    found = [next((key for key in keys if key == name or key.endswith(f".{name}")), None) for name in wanted]
    if wanted and (None in found or len(set(found)) != 2):
        raise FuserlError(
            "a heat map takes two settings that tell methods apart",
            where="`heat`",
            hint=f"there are: {', '.join(keys) or 'none'}",
        )
    return [key for key in found if key]


def _write_manifest(
    folder: Path, given: Mapping[str, Any], comparison: Comparison, left_out: Sequence[LeftOut]
) -> None:
    manifest = {
        "verb": "compare",
        "settings": given,
        "metric": comparison.metric._asdict(),
        "baseline": comparison.baseline.label if comparison.baseline else None,
        "prompts": comparison.num_prompts,
        "methods": {
            method.label: [
                {"run": str(run.path), "seed": run.seed, "digest": settings.digest("train", run.config, FREE)}
                for run in method.runs
            ]
            for method in comparison.methods
        },
        "left_out": [{"run": str(one.path), "why": one.why} for one in left_out],
        "versions": {"fuserl": fuserl.__version__},
    }
    write_text_atomically(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False, default=str))


def tell(comparison: Comparison, left_out: Sequence[LeftOut], folder: Path) -> None:
    """The table, and what was left out, for the person at the terminal."""
    say_table(for_terminal(comparison))
    if comparison.baseline is None and len(comparison.rows) > 1:
        say(
            "no tests: name a method to test against, `'baseline="
            + printable(comparison.rows[-1].method.label)
            + "'` say"
        )
    few = [row for row in comparison.rows if len(row.method.runs) < 3]
    if few:
        say(
            f"{len(few)} of {len(comparison.rows)} methods have fewer than three seeds: their intervals and tests say little"
        )
    for one in left_out[:LISTED]:
        say(f"left out: {printable(str(one.path))}: {printable(one.why)}")
    if len(left_out) > LISTED:
        say(f"left out: {len(left_out) - LISTED} more, see {folder / 'runs.csv'}")
    say(f"page: {folder / 'index.html'}")

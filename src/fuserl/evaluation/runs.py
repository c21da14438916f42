"""Finding runs and reading what their folders hold. What is broken or unfinished is named, never counted."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.benchmarks.protocol import Graded, Result
from fuserl.evaluation.places import EVALUATION
from fuserl.settings import FREE, digest

Series = list[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Answer:
    """One answer of a run to one prompt; `score` is None where nothing could be said."""

    prompt_id: str
    domain: str
    sample: int
    prompt: str
    answer: str
    tokens: float
    unfinished: float
    score: float | None


@dataclass(frozen=True)
class Run:
    """A complete run."""

    path: Path
    config: Mapping[str, Any]  # resolved settings
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Of the run; two runs of one seed share the order of prompts and all that is drawn."""
        return self.config.get("seed", 0)

    @cached_property
    def series(self) -> dict[str, Series]:
        """Every column of `metrics.csv` with its finite values, in the order of steps."""
        found: dict[str, Series] = {}
        with (self.path / "metrics.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                for name, text in row.items():
                    value = _number(text)
                    if step is not None and value is not None:
                        found.setdefault(name, []).append((step, value))
        return {name: sorted(points) for name, points in found.items()}

    @cached_property
    def answers(self) -> list[Answer]:
        """Of the test, sampled after training; empty where there was none."""
        return list(_answers(self.path / "test.jsonl"))

    @cached_property
    def probe(self) -> list[Answer]:
        """Answers to the probe at its last step."""
        rows = list(_lines(self.path / "samples.jsonl"))
        last = max((row.get("step", 0) for row in rows), default=0)
        return [_answer(row) for row in rows if row.get("step", 0) == last]

    @cached_property
    def benchmarks(self) -> dict[str, Result]:
        """What `fuserl evaluate` found out about its model, by benchmark; empty where nobody asked."""
        return results.all_in(self._evaluation)

    def graded(self, benchmark: str) -> list[Graded]:
        """The model's answers to a benchmark."""
        return self._graded.setdefault(benchmark, results.graded(self._evaluation / benchmark))

    @property
    def _evaluation(self) -> Path:
        """The folder of its benchmarks: beside its model, or its own where it is an evaluation."""
        inside = self.path / EVALUATION
        return inside if inside.is_dir() else self.path

    @cached_property
    def _graded(self) -> dict[str, list[Graded]]:
        return {}


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not in the numbers."""

    path: Path
    why: str


def find_runs(given: Sequence[str]) -> tuple[list[Run], list[LeftOut]]:
    """The complete runs at and below the given folders, each once, and what was left out.

    Args:
        given: run folders, folders above them, or glob patterns.

    Raises:
        FuserlError: a folder does not exist, or no complete run was found.
    """
    runs, left_out, seen = [], [], {}
    for folder in dict.fromkeys(folder.resolve() for text in given for top in _tops(text) for folder in _below(top)):
        found = read_run(folder)
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        name = digest("train", found.config, FREE)
        if name in seen:
            left_out.append(LeftOut(folder, f"the same run as {seen[name]}: all that decides it is equal"))
            continue
        seen[name] = folder
        runs.append(found)
    if not runs:
        unfinished = "; ".join(f"{one.path}: {one.why}" for one in left_out[:5])
        raise FuserlError(
            "no complete run was found" + (f" ({unfinished})" if unfinished else ""),
            where=", ".join(given) or "`runs`",
            hint="a run is a folder with `config.yaml` and `metrics.csv`; it is complete when it has `summary.json`",
        )
    return runs, left_out


def _tops(text: str) -> list[Path]:
    path = os.path.expanduser(text)
    found = (
        [path]
        if os.path.isdir(path)
        else sorted(match for match in glob.glob(path, recursive=True) if os.path.isdir(match))
    )
    if not found:
        raise FuserlError("there is no such folder", where=text, hint="`runs=[A,B]` takes folders or glob patterns")
    return [Path(one) for one in found]


def _below(top: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(top):
        if "config.yaml" in files and ("metrics.csv" in files or "failure.json" in files):
            below.clear()
            yield Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_run(folder: Path) -> Run | LeftOut:
    """The run of a folder, with everything in it read once, so that what is broken shows here."""
    try:
        if not (folder / "summary.json").exists():
            return LeftOut(folder, _failure(folder))
        run = Run(folder, settings_in(folder), _mapping(_json(folder / "summary.json"), "summary.json"))
        _ = run.series, run.answers, run.benchmarks
        return run
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error, yaml.YAMLError) as error:
        return LeftOut(folder, f"it cannot be read: {' '.join(str(error).split()) or type(error).__name__}")


def settings_in(folder: Path) -> Mapping[str, Any]:
    """A run's resolved settings; ValueError or OSError where they cannot be read."""
    loader = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # OmegaConf's own is ten times slower; here nothing is resolved
    try:
        content = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), loader)
    except RecursionError as error:
        raise ValueError("config.yaml is nested too deeply") from error
    return _mapping(content, "config.yaml")


def _failure(folder: Path) -> str:
    if not (folder / "failure.json").exists():
        return "not finished: it has no summary.json"
    failure = _mapping(_json(folder / "failure.json"), "failure.json")
    return f"failed: {' '.join(str(failure.get('error', 'no reason is given')).split())}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} does not map names to values")
    return value


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _mapping(json.loads(line), "the line")
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path.name}, line {number}: {error}") from error


def _answers(path: Path) -> Iterable[Answer]:
    for number, row in enumerate(_lines(path), 1):
        try:
            yield _answer(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {number}: no answer to a prompt ({error!r})") from error


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(
        str(row["prompt_id"]),
        str(row.get("domain", "general")),
        int(row.get("sample", 0)),
        str(row["prompt"]),
        str(row["answer"]),
        float(row.get("tokens", 0)),
        float(row.get("unfinished", 0)),
        _number(row.get("score")),
    )


def _number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

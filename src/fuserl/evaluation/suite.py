"""A model on benchmarks: answers once, grades, numbers, a table; every benchmark is kept as it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import fuserl
from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.benchmarks.clean import without
from fuserl.evaluation.benchmarks.contamination import overlaps, rule_settings
from fuserl.evaluation.benchmarks.judged import ready
from fuserl.evaluation.benchmarks.protocol import Benchmark, Result
from fuserl.evaluation.benchmarks.work import Model, Worker
from fuserl.evaluation.places import EVALUATION, Place
from fuserl.evaluation.story import write_story
from fuserl.evaluation.suite_table import for_terminal, published_rows, row_of, rows_of
from fuserl.evaluation.wandb_table import log
from fuserl.records.formats import read_groups
from fuserl.records.inputs import content_digest
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.records.rows import Needs
from fuserl.records.store import file_digest
from fuserl.rewards.made import made
from fuserl.sources.chosen import engine_of
from fuserl.sources.source import Source, content_of, source_of
from fuserl.terminal import say, say_table

OF_SOURCE = ("revision", "chat_template", "date_string", "system", "dtype", "context", "trust_remote_code")
LONGEST_PATH = 4096  # characters; a longer text is no path
NOT_DECISIVE = ("engine", "workers")  # of graders: where and how fast they work


@dataclass(frozen=True)
class Chosen:
    """A benchmark with its graders."""

    benchmark: Benchmark
    graders: Mapping[str, Mapping[str, Any]]

    def made_from(self, source: Source, seed: int) -> str:
        """Digest of all that decides the result."""
        graders = _decisive(self.graders)
        content = [source.identity(), source.name, seed, self.benchmark.identity(), graders, fuserl.__version__]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def suite(given: dict[str, Any], place: Place) -> Path:
    """Run the benchmarks of `given`; a folder keeps what other commands have found out about the same model.

    Returns:
        The folder: a folder a benchmark, `answers.jsonl` (all that the model said), `summary.json`, `metrics.csv`.

    Raises:
        FuserlError: a benchmark cannot be done; those before it are kept.
    """
    if given["on_failure"] not in ("error", "leave_out"):
        raise FuserlError(
            f"`{given['on_failure']}` is no way to treat failures", where="`on_failure`", hint="error or leave_out"
        )
    chosen = {name: _chosen(name, node) for name, node in given["benchmarks"].items()}
    start = engine_of(given["engine"], None, "engine")
    told = published_rows(given["papers"])
    if given["train_data"]:
        next(read_groups(given["train_data"], needs=Needs(responses=False)))
    for one in chosen.values():  # what cannot be read or made is told before anything is asked
        next(iter(one.benchmark.texts()), None)
        one.benchmark.identity()
    for one in chosen.values():
        ready(one.graders)
    source = _source(given, place)
    folder = _folder(given, place, source)
    with locked(folder):
        _require_same(folder, source)
        model = Model(source, start, folder, given["seed"], given["give_up"], given["on_failure"])
        try:
            for name, one in chosen.items():
                _run(name, one, Worker(name, model, folder / name, one.graders))
        finally:
            model.close()
        if given["train_data"]:
            _look_for(chosen, given["train_data"], folder)
        found = results.all_in(folder)
        _write(folder, given, source, found)
    if place.recipe and (page := write_story(place.recipe)):
        say(f"report: {page}")
    if project := given["wandb"]["project"]:
        group = given["wandb"]["group"] or (place.home.name if place.home else None)
        log(folder, project=project, name=f"{source.name}-evaluation", group=group, config=given)
    say_table(for_terminal(rows_of([row_of(source.name, found)], told)))
    for name, result in found.items():
        for note in result.notes:
            say(f"{name}: {note}")
    say(f"done: {folder}")
    return folder


def _chosen(name: str, node: Mapping[str, Any]) -> Chosen:
    graders = dict(node.get("graders") or {})
    benchmark = made({key: value for key, value in node.items() if key != "graders"}, f"benchmarks.{name}")
    if not callable(getattr(benchmark, "texts", None)) or not callable(getattr(benchmark, "run", None)):
        raise FuserlError(
            f"this is no benchmark but a {type(benchmark).__name__}",
            where=f"`benchmarks.{name}`",
            hint="name one of conf/benchmark, or a class of your own as `_target_` (benchmarks/protocol.py)",
        )
    return Chosen(benchmark, graders)


def _source(given: Mapping[str, Any], place: Place) -> Source:
    """The model under test; how it answers is said by each question."""
    path = given["model"]
    name = given["name"] or (place.home.name if place.home else Path(path).name)
    said = {key: given[key] for key in OF_SOURCE}
    return source_of(str(name), said | {"path": path, "sampling": {"max_tokens": 1}}).with_content()


def _folder(given: Mapping[str, Any], place: Place, source: Source) -> Path:
    if given["output"]:
        return Path(given["output"]).expanduser()
    if place.home is not None:
        return place.home / EVALUATION
    return Path("runs") / settings.digest("evaluate", {"source": source.plain(), "seed": given["seed"]}, ())


def _require_same(folder: Path, source: Source) -> None:
    """Raises: FuserlError: the folder holds what another model, or nobody's benchmark, answered."""
    about = folder / "model.json"
    now = json.loads(json.dumps(source.identity() | {"name": source.name}, default=str))
    if about.exists():
        before = json.loads(about.read_text(encoding="utf-8"))
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            raise FuserlError(
                f"the folder holds the benchmarks of another model (other {', '.join(changed)})",
                where=str(folder),
                hint="give another folder with `output=DIR`, or delete this one to start anew",
            )
        return
    if (folder / "summary.json").exists() or (folder / "manifest.json").exists():
        raise FuserlError(
            "the folder holds something else", where=str(folder), hint="give another folder with `output=DIR`"
        )
    write_text_atomically(about, json.dumps(now, indent=1))


def _run(name: str, chosen: Chosen, work: Worker) -> Result:
    made_from = chosen.made_from(work.source, work.seed)
    if (kept := results.read(work.folder, made_from)) is not None:
        say(f"{name}: finished already")
        return kept
    work.model.told.clear()
    found = chosen.benchmark.run(work)
    made = {key: sorted(values) for key, values in work.model.told.items()}
    about = {"model": work.source.content or work.source.path, "date": datetime.now(UTC).date().isoformat()} | made
    if chosen.graders:
        about["graders"] = {key: _grader(node) for key, node in chosen.graders.items()}
    result = replace(found, about=about | dict(found.about))
    results.write(work.folder, result, made_from)
    return result


def _look_for(chosen: Mapping[str, Chosen], data: str, folder: Path) -> None:
    """The benchmarks' questions in what the model was trained on; each result gets what was found behind it."""
    say(f"looking for the questions of {', '.join(chosen)} in {data}")
    texts = {name: one.benchmark.texts() for name, one in chosen.items()}
    groups = read_groups(data, needs=Needs(responses=False))
    digest = content_digest(data, None)[:16]
    for name, overlap in overlaps(texts, groups, **rule_settings()).items():
        result = results.read(folder / name)
        assert result is not None  # it has just been made
        results.add(folder / name, without(result, results.graded(folder / name), overlap, data, digest))


def _grader(node: Mapping[str, Any]) -> str:
    """A grader in a few words: what it is, and the model that judges, where one does."""
    path = (node.get("source") or {}).get("path") or node.get("path") or ""
    return f"{str(node.get('_target_', '')).rpartition('.')[2]} {path}".strip()


def _decisive(node: Any) -> Any:
    """Graders without what decides no grade; local models and files by what they hold."""
    if isinstance(node, list):
        return [_decisive(one) for one in node]
    if isinstance(node, Mapping):
        return {key: _decisive(value) for key, value in node.items() if key not in NOT_DECISIVE}
    if not isinstance(node, str) or not node or "\n" in node or len(node) > LONGEST_PATH:
        return node
    path = Path(node).expanduser()
    return file_digest(path) if path.is_file() else content_of(node) or node


def _write(folder: Path, given: Mapping[str, Any], source: Source, found: Mapping[str, Result]) -> None:
    """A folder like a run's; `summary.json` last."""
    evaluation: dict[str, Any] = {name: results.numbers_of(result) for name, result in found.items()}
    if mean := results.average(results.heads(found).values()):
        evaluation[mean.name] = mean.value
    write_text_atomically(
        folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(given) | {"output": str(folder)}))
    )
    write_text_atomically(folder / "metrics.csv", "step\n0\n")  # nothing is measured over steps
    summary = {
        "verb": "evaluate",
        "seed": given["seed"],
        "model": source.path,
        "name": source.name,
        "content": source.content,
        "evaluation": evaluation,
    }
    write_text_atomically(folder / "summary.json", json.dumps(summary, indent=1, default=str))

"""Benchmarks of EleutherAI's lm-eval, by its own code: prompts, few-shot examples, extraction and averages are its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.lm_eval_models import Kept, given_back, template_of
from fuserl.evaluation.benchmarks.lm_eval_results import graded, numbers, roots, task_hashes
from fuserl.evaluation.benchmarks.protocol import Result, Work
from fuserl.records.journal import Journal
from fuserl.records.store import file_digest
from fuserl.rewards.described import described
from fuserl.sources.source import Source
from fuserl.tokens.templates import Template

Backend = Callable[[Source, Template, Kept], Any]


@dataclass(frozen=True)
class LmEval:
    """Tasks of lm-eval as one benchmark. The fields and their reasons are those of `conf/benchmark/mmlu_pro.yaml`."""

    name: str
    tasks: Sequence[str]
    metric: str | None
    unit: float
    num_fewshot: int | None
    limit: float | None
    chat: bool
    fewshot_as_multiturn: bool
    generation: Mapping[str, Any] | None
    include_path: str | None
    bundled: bool
    bootstrap: int
    backend: Backend

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`."""
        for name, task in self._loaded.items():
            for number, doc in enumerate(task.eval_docs):
                if isinstance(text := task.doc_to_text(doc), str):
                    yield f"{name}/{number}", text

    def identity(self) -> Mapping[str, Any]:
        """Tasks, their files where they are one's own, the version of lm-eval, all settings but the batch's size."""
        settings = {
            key: getattr(self, key) for key in self.__dataclass_fields__ if key not in ("backend", "include_path")
        }
        own = {file.name: file_digest(file) for file in self._own_files()}
        settings |= {"tasks": list(self.tasks), "own": own, "backend": described(self.backend)["function"]}
        return settings | {"generation": dict(self.generation or {}), "lm_eval": _version()}

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        self._require_metric()
        template = template_of(work.source, self.chat)
        asked = {"source": work.source.identity(), "template": template.hash, "chat": self.chat, "lm_eval": _version()}
        work.folder.mkdir(parents=True, exist_ok=True)
        work.release()  # lm-eval loads the model by itself
        with Journal(work.folder / "lm_eval.jsonl") as journal:
            kept = Kept(journal, asked)
            found = self._evaluated(self.backend(work.source, template, kept), work.seed)
        given_back()
        tops = roots(found)
        counted = sum(found["n-samples"][name]["effective"] for name in found["n-samples"])
        about = {
            "lm_eval": _version(),
            "date": datetime.now(UTC).date().isoformat(),
            "tasks": list(self.tasks),
            "versions": dict(found["versions"]),
            "num_fewshot": dict(found["n-shot"]),
            "task_hashes": task_hashes(found),
            "chat_template": template.hash if self.chat else None,
            "generation": dict(self.generation or {}),
            "limit": self.limit,
            "subtasks": {name: _plain(values) for name, values in found["results"].items() if name not in tops},
        }
        rows = graded(found, self.metric, self.unit)
        counts = {"prompts": counted, "answers": counted, "unanswered": 0, "unknown": 0}
        return Result(
            tuple(numbers(found, tops, self.metric, self.unit)), counts, about, rows, self._notes(kept, found)
        )

    def _evaluated(self, model: Any, seed: int) -> Mapping[str, Any]:
        import lm_eval

        evaluated: Any = lm_eval.simple_evaluate  # its decorator hides its arguments
        try:
            found = evaluated(
                model=model,
                tasks=list(self.tasks),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                apply_chat_template=self.chat,
                fewshot_as_multiturn=self.chat and self.fewshot_as_multiturn,
                gen_kwargs=dict(self.generation) if self.generation else None,
                task_manager=self._manager,
                bootstrap_iters=self.bootstrap,
                torch_random_seed=seed,  # of answers that are drawn; few-shot examples keep lm-eval's own seed
                log_samples=True,
            )
        except FuserlError:
            raise
        except Exception as error:  # of tasks, models and vLLM: there is no common class
            raise self._stopped("lm-eval cannot do it", error) from error
        if found is None:
            raise FuserlError("lm-eval gave no result", where=self._where, hint="run it in one process")
        return found

    @property
    def _where(self) -> str:
        return f"`benchmarks.{self.name}.tasks`"

    @cached_property
    def _manager(self) -> Any:
        """Its index of tasks.

        Raises:
            FuserlError: lm-eval is not installed, or has no task of that name.
        """
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise FuserlError(
                f"lm-eval is not installed, or cannot be imported ({error})",
                where=f"`benchmark={self.name}`",
                hint="pip install 'fuserl[eval]'",
            ) from error
        if not self.tasks:
            raise FuserlError("no task is named", where=self._where, hint="as in tasks=[arc_challenge,hellaswag]")
        self._own_files()
        manager = TaskManager(include_path=self.include_path, include_defaults=self.bundled)
        if unknown := [name for name in self.tasks if name not in manager.all_tasks]:
            near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=5, cutoff=0.5)
            raise FuserlError(
                f"lm-eval {_version()} has no task `{unknown[0]}`",
                where=self._where,
                hint=f"is it {', '.join(near)}?"
                if near
                else "`lm_eval ls tasks` names all; own ones need `include_path`",
            )
        return manager

    @cached_property
    def _loaded(self) -> Mapping[str, Any]:
        """Its tasks, with their questions."""
        try:
            return self._manager.load(list(self.tasks))["tasks"]
        except FuserlError:
            raise
        except Exception as error:  # of the hub's client, data sets and tasks' own code: there is no common class
            raise self._stopped("the task's questions cannot be loaded", error) from error

    def _require_metric(self) -> None:
        """Raises: FuserlError: a task is not there, or no task has `metric`; told before a model is loaded."""
        there = [
            f"{metric},{chosen.name}"
            for task in self._loaded.values()
            for metric in task.aggregation()
            for chosen in task._filters
        ]
        if self.metric is not None and self.metric not in there:
            raise FuserlError(
                f"no task here has the metric `{self.metric}`",
                where=f"`benchmarks.{self.name}.metric`",
                hint=f"there are {'; '.join(dict.fromkeys(there))}",
            )

    def _stopped(self, what: str, error: Exception) -> FuserlError:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return FuserlError(
            f"{what} ({type(error).__name__}: {why})",
            where=self._where,
            hint="tasks read their questions from the hub (some want `hf auth login`); without a network, put a task file "
            "that reads a local file into a folder and give it with `include_path`; what was answered is kept",
        )

    def _own_files(self) -> list[Path]:
        """The task files of one's own; raises FuserlError where the folder is not there."""
        if self.include_path is None:
            return []
        folder = Path(self.include_path).expanduser()
        if not folder.is_dir():
            raise FuserlError(
                "there is no such folder",
                where=f"`benchmarks.{self.name}.include_path={self.include_path}`",
                hint="give a folder of lm-eval's task files (*.yaml)",
            )
        return sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml", ".py"))

    def _notes(self, kept: Kept, found: Mapping[str, Any]) -> tuple[str, ...]:
        notes = []
        if self.limit is not None:
            notes.append(f"the first questions alone (limit {self.limit:g}): for a trial, not for a table")
        if kept.without_system:
            notes.append(f"{kept.without_system:,} prompts went without their system turn, which the template refuses")
        if any(config.get("output_type") == "generate_until" for config in found["configs"].values()):
            notes.append("lm-eval does not say which answers were cut at their length")
        return tuple(notes)


def _version() -> str:
    return version("lm_eval")


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}

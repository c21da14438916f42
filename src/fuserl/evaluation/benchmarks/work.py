"""What benchmarks use in earnest: one model, started when first needed; one journal of its answers; the verb `score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.protocol import Question
from fuserl.records.journal import Journal
from fuserl.records.schema import PromptGroup
from fuserl.records.store import iter_groups, replace_groups
from fuserl.rewards.score import score
from fuserl.settings import compose
from fuserl.sources.asked import Asked
from fuserl.sources.asking import Outcome, ask
from fuserl.sources.grouped import response_of
from fuserl.sources.protocol import Engine, Sampling
from fuserl.sources.source import Source
from fuserl.terminal import bar, say

IN_PROCESS = ("fuserl.sources.transformers.", "fuserl.sources.vllm.", "fuserl.sources.ray_actors.")  # engines


@dataclass
class Model:
    """The model under test. Hold the folder's lock, and close it.

    Args:
        source: by its content (`Source.with_content`), so that a model trained anew is another one.
        start: its engine, not started yet.
        folder: where `answers.jsonl`, the journal of all that it said, and `failures.jsonl` lie.
        give_up: failures in a row after which no more is asked; None: never.
        on_failure: of questions without an answer: error, or leave_out.
    """

    source: Source
    start: Callable[[Source], Engine]
    folder: Path
    seed: int
    give_up: int | None
    on_failure: str
    told: dict[str, set[str]] = field(default_factory=dict)  # engines and templates of the answers, until it is cleared
    _engine: Engine | None = None
    _closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.journal = self._closing.enter_context(Journal(self.folder / "answers.jsonl"))

    def answered(self, questions: Sequence[Question], name: str) -> list[PromptGroup]:
        """See `protocol.Work`.

        Args:
            name: of the benchmark, for the bar.

        Raises:
            FuserlError: an answer did not come, and `on_failure` is `error`.
        """
        asked = [(self._asked(one), one.group) for one in questions]
        keys = {key for one, group in asked for key in one.keys(group)}
        known = sum(key in self.journal for key in keys)
        if known < len(keys):
            self._ask(asked, name, len(keys), known)
        groups = [replace(group, responses=self._responses(one, group)) for one, group in asked]
        self._note(groups)
        return groups

    def release(self) -> None:
        """Free the model; the journal stays open."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def close(self) -> None:
        """Free the model, close the journal."""
        self.release()
        self._closing.close()

    def _note(self, groups: Sequence[PromptGroup]) -> None:
        for response in (response for group in groups for response in group.responses):
            for key in ("engine", "template_hash"):
                if (value := response.extra.get(key)) is not None:
                    self.told.setdefault(key, set()).add(str(value))

    def _asked(self, question: Question) -> Asked:
        return Asked(replace(self.source, sampling=question.sampling, samples=question.samples), self.seed)

    def _ask(self, asked: Sequence[tuple[Asked, PromptGroup]], name: str, wanted: int, known: int) -> None:
        """Every way of drawing in turn."""
        ways: dict[tuple[Sampling, Any], list[tuple[Asked, PromptGroup]]] = {}
        for one, group in asked:
            ways.setdefault((one.source.sampling, one.source.samples), []).append((one, group))
        if self._engine is None:
            self._engine = self.start(self.source)
        failures, before = Outcome(), known
        with (
            (self.folder / "failures.jsonl").open("w", encoding="utf-8") as failed,
            bar(f"asking {name}", lambda: wanted) as told,
        ):
            for members in ways.values():

                def count(so_far: Outcome, before: int = before) -> None:
                    told(before + so_far.answers, so_far.beside())

                groups = (group for _, group in members)
                outcome = ask(
                    members[0][0], self._engine, self.journal, groups, failed, give_up=self.give_up, told=count
                )
                before += outcome.answers
                failures.failures += outcome.failures
                failures.reasons += outcome.reasons
        if not failures.failures:
            return
        what = f"{failures.failures:,} answers of {name} did not come ({failures.reasons.most_common(1)[0][0]})"
        if self.on_failure == "error":
            raise FuserlError(
                what,
                where=str(self.folder / "failures.jsonl"),
                hint="run the same command again, which asks for these alone; all others are kept; questions that can "
                "have no answer (a prompt too long, say) are left out and counted with `on_failure=leave_out`",
            )
        say(what)

    def _responses(self, asked: Asked, group: PromptGroup) -> tuple[Any, ...]:
        pairs = enumerate(zip(asked.keys(group), asked.seeds(group), strict=True))
        found = ((number, seed, self.journal.get(key)) for number, (key, seed) in pairs)
        return tuple(response_of(one, asked.source.name, number, seed) for number, seed, one in found if one)


@dataclass(frozen=True)
class Worker:
    """`protocol.Work` for one benchmark."""

    name: str
    model: Model
    folder: Path
    graders: Mapping[str, Mapping[str, Any]]

    @property
    def source(self) -> Source:
        """The model under test."""
        return self.model.source

    @property
    def seed(self) -> int:
        """Of the answers."""
        return self.model.seed

    def answered(self, questions: Sequence[Question]) -> list[PromptGroup]:
        """See `protocol.Work`."""
        return self.model.answered(questions, self.name)

    def release(self) -> None:
        """See `protocol.Work`."""
        self.model.release()

    def scored(
        self, groups: Sequence[PromptGroup], name: str = "graded", only: Sequence[str] | None = None
    ) -> list[PromptGroup]:
        """See `protocol.Work`."""
        graders = {key: node for key, node in self.graders.items() if only is None or key in only}
        asked, folder = self.folder / f"{name}-answers", self.folder / name
        replace_groups(iter(groups), asked, manifest_extra={"verb": "evaluate"})
        if any(map(loads_a_model, graders.values())):
            self.release()
        say(f"{self.name}: grading by {', '.join(graders)}")
        score(_score_settings(asked, folder, graders, self.model.on_failure))
        return list(iter_groups(folder))


def loads_a_model(grader: Mapping[str, Any]) -> bool:
    """Whether a grader runs a model on this machine: a reward model, or a judge in this process."""
    engine = grader.get("engine") or {}
    return "classifier" in grader or str(engine.get("_target_", "")).startswith(IN_PROCESS)


def _score_settings(data: Path, folder: Path, graders: Mapping[str, Any], on_failure: str) -> Any:
    """The configuration of `score` that grades just this."""
    cfg = compose("score", [f"data.path='{data}'"])
    OmegaConf.set_struct(cfg, False)
    cfg.output, cfg.on_failure, cfg.rewards = str(folder), on_failure, dict(graders)
    cfg.combine.scorer = next(iter(graders))
    return cfg

"""What a benchmark is given and what comes out of it; every benchmark speaks this and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fuserl.records.schema import PromptGroup
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import Source


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with the way its answers are drawn."""

    group: PromptGroup  # `id` is unique in the benchmark; what graders need stands in `reference` and `extra`
    sampling: Sampling
    samples: int = 1  # answers wanted


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a benchmark, in the unit that papers print (percent, points from 1 to 10)."""

    name: str  # accuracy, win_rate, length_controlled_win_rate, pass@1, strict_prompt_accuracy, score, ...
    value: float | None  # None: nothing could be said (no verdict at all); never 0 for what is not known
    low: float | None = None  # ends of the 95 % interval
    high: float | None = None
    over: str = ""  # what the interval speaks for and how it was made: "prompts, bootstrap"


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer with its grade, for `test.jsonl`, by which `compare` pairs models prompt by prompt."""

    prompt_id: str
    prompt: str
    answer: str
    score: float | None  # higher is better, in the unit of the first number or a share of it; None: no verdict
    sample: int = 0
    tokens: int = 0
    unfinished: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)  # plain JSON: games, ratings, why


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark says of a model."""

    numbers: tuple[Number, ...]  # the first is the one that tables show
    counts: Mapping[str, int]  # prompts, answers, unfinished, unknown (answers or games without a verdict), ...
    about: Mapping[str, Any]  # judge, judge_template (hash), date, baseline, versions, digest of the questions, ...
    answers: Sequence[Graded] = ()
    notes: tuple[str, ...] = ()  # what a reader of the number must know, a sentence each


@runtime_checkable
class Work(Protocol):
    """What a benchmark may use. `benchmarks.work.Worker` is the real one; tests make their own of five lines."""

    folder: Path  # the benchmark's own; it may write what it likes there, `result.json` is the verb's
    source: Source  # the model under test: path, revision, dtype, chat_template, trust_remote_code, name
    seed: int
    graders: Mapping[
        str, Mapping[str, Any]
    ]  # scorers by name, raw nodes as in conf/reward/: what stands under `graders`
    # in the benchmark's YAML, which the verb takes out before it makes the benchmark (Hydra would build them otherwise)

    def answered(self, questions: Sequence[Question]) -> list[PromptGroup]:
        """The questions' groups, in order, each with the model's answers as its only responses.

        What was answered before is not asked again, and a killed run goes on where it was. The model starts when it is
        first needed, once for all benchmarks.

        Raises:
            FuserlError: an answer did not come; all others are kept. With `on_failure=leave_out` nothing is raised, and
                a group may come back with fewer responses than were asked for, or none: count them as `unanswered`.
        """
        ...

    def release(self) -> None:
        """Give back the memory of the model under test, before another one is loaded beside it; it starts again when it is
        next asked."""
        ...

    def scored(
        self, groups: Sequence[PromptGroup], name: str = "graded", only: Sequence[str] | None = None
    ) -> list[PromptGroup]:
        """The groups with every response graded by `graders`, by `fuserl score` (journal, retries, resuming).

        The first grader's reward and verdict are the response's; each one's reward, verdict and detail stand in
        `response.extra["scores"][NAME]`.

        Args:
            name: of the folder below `folder` in which it is kept.
            only: names of the graders that are asked; None: all.
        """
        ...


@runtime_checkable
class Benchmark(Protocol):
    """A benchmark, made from conf/benchmark/NAME.yaml."""

    name: str

    def texts(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every prompt, for the contamination check.

        Raises:
            FuserlError: the questions cannot be read; found before anything is asked.
        """
        ...

    def identity(self) -> Mapping[str, Any]:
        """All that decides the result beside the model: questions, sampling, graders, judge, template, versions."""
        ...

    def run(self, work: Work) -> Result:
        """Ask, grade, count.

        Raises:
            FuserlError: it cannot be done; what was answered and graded is kept.
        """
        ...

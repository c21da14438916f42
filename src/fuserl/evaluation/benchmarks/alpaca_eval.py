"""AlpacaEval-2: a model's answers against a baseline's, and its win rate with and without the advantage of length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fuserl.evaluation.benchmarks.alpaca_judges import Judge
from fuserl.evaluation.benchmarks.alpaca_package import alpaca, version
from fuserl.evaluation.benchmarks.alpaca_pairs import Baseline, Judged, Pair, write
from fuserl.evaluation.benchmarks.length_control import Controlled, LengthControl, win_rates
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Question, Result, Work
from fuserl.evaluation.benchmarks.questions import Questions
from fuserl.records.schema import PromptGroup
from fuserl.sources.source import sampling_of


@dataclass(frozen=True)
class AlpacaEval:
    """The benchmark of conf/benchmark/alpaca_eval.yaml.

    Args:
        sampling: fields of `Sampling`.
        baseline: what answers are compared with; annotations bring their own.
        judge: one of conf/alpaca_judge/.
        published: what published numbers were made with: `judge`, `baseline`, `questions` (digest), `length_control`.
    """

    name: str
    questions: Questions
    sampling: Mapping[str, Any]
    baseline: Baseline
    judge: Judge
    length_control: LengthControl
    published: Mapping[str, str]

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`."""
        return self.questions.texts()

    def identity(self) -> Mapping[str, Any]:
        """See `Benchmark`; graders stand beside it."""
        alpaca("metrics.glm_winrate")
        whose, outputs = self._baseline if self.judge.asks else ("the annotations'", [])
        return {
            "questions": self.questions.digest,
            "sampling": dict(self.sampling),
            "baseline": [whose, _digest(outputs)],
            "judge": dict(self.judge.identity()),
            "length_control": dict(self.length_control.identity()),
            "alpaca-eval": version(),
        }

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        self.identity()  # all that can be missing is, before the model is asked
        self.judge.check(work)
        judged = self.judge.judged(work, self.questions.groups, lambda: self._answered(work))
        write(work.folder, judged, self.judge.asks)
        preferences = np.array(
            [np.nan if p.preference is None else p.preference for p in judged.pairs], dtype=np.float64
        )
        longer_by = np.array([len(p.baseline) - len(p.answer) for p in judged.pairs], dtype=np.float64)
        places = [pair.place for pair in judged.pairs]
        controlled = self.length_control.of(preferences, longer_by, places, self._asked_of, work.seed)
        num = len(self.questions.groups)
        unknown = num - int(np.isfinite(preferences).sum())
        about = {
            **judged.about,
            "baseline": judged.baseline,
            "generator": judged.model,
            "questions": self.questions.path,
            "digest": self.questions.digest,
            "sampling": dict(self.sampling) if self.judge.asks else None,
            "alpaca-eval": version(),
            "length_control": {
                "way": controlled.way,
                "difficulties": self.length_control.instruction_difficulty,
                **controlled.about,
            },
        }
        counts = {
            "prompts": num,
            "answers": len(judged.pairs),
            "unknown": unknown,
            "unfinished": _unfinished(judged.pairs),
        }
        notes = (*judged.notes, *self._notes(judged, controlled, unknown, num))
        return Result(
            self._numbers(preferences, judged, controlled), counts, about, list(map(_row, judged.pairs)), notes
        )

    @cached_property
    def _baseline(self) -> tuple[str, list[str]]:
        return self.baseline.of(self.questions.groups)

    @cached_property
    def _asked_of(self) -> str:
        """Digest of all instructions, also of those beyond `limit`: places are theirs."""
        whole = self.questions if self.questions.limit is None else replace(self.questions, limit=None)
        return _digest([group.prompt[-1].content for group in whole.groups])

    def _answered(self, work: Work) -> tuple[str, str, list[Pair]]:
        """The model's answers beside the baseline's."""
        whose, outputs = self._baseline
        drawn = sampling_of(self.sampling, f"`benchmarks.{self.name}.sampling`")
        groups: Sequence[PromptGroup] = work.answered([Question(group, drawn) for group in self.questions.groups])
        return (
            work.source.name,
            whose,
            [
                Pair(group, place, text)
                for place, (group, text) in enumerate(zip(groups, outputs, strict=True))
                if group.responses  # none where the model could not answer, and may leave that out
            ],
        )

    def _numbers(self, preferences: Any, judged: Judged, controlled: Controlled) -> tuple[Number, ...]:
        prefix = self.judge.prefix
        over = "prompts, bootstrap" if controlled.low is not None else ""
        name = prefix + "length_controlled_win_rate"
        length = float(np.mean([len(pair.answer) for pair in judged.pairs])) if judged.pairs else None
        return (
            Number(name, controlled.value, controlled.low, controlled.high, over),
            *win_rates(preferences, prefix),
            Number("avg_length", length),
        )

    def _notes(self, judged: Judged, controlled: Controlled, unknown: int, num: int) -> Iterator[str]:
        """What a reader of the numbers must know."""
        if unknown:
            yield f"{unknown:,} of {num:,} questions have no preference: they are left out, neither won nor lost"
        if controlled.note:
            yield controlled.note
        ours = {
            "judge": judged.judge,
            "baseline": judged.baseline,
            "questions": self._asked_of if self.questions.limit is None else f"the first {self.questions.limit}",
            "length_control": controlled.way,
        }
        differing = [
            f"{what} `{ours[what]}` (there `{theirs}`)"
            for what, theirs in self.published.items()
            if ours[what] != theirs
        ]
        if differing:
            yield f"not comparable with published AlpacaEval-2 numbers: {'; '.join(differing)}"


def _row(pair: Pair) -> Graded:
    """A pair for `graded.jsonl`: the chance that the model's answer is the better one."""
    response = pair.group.responses[0]
    score = None if pair.preference is None else pair.preference - 1.0
    tokens, cut = int(response.extra.get("response_tokens") or 0), response.finish_reason == "length"
    return Graded(pair.group.id, pair.instruction, pair.answer, score, 0, tokens, cut, dict(pair.detail))


def _unfinished(pairs: Sequence[Pair]) -> int:
    return sum(pair.group.responses[0].finish_reason == "length" for pair in pairs)


def _digest(texts: Sequence[str]) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]

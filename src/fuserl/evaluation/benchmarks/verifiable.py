"""Benchmarks whose answers a program verifies, and the numbers that are made of the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Question, Result, Work
from fuserl.evaluation.benchmarks.questions import Questions
from fuserl.records.schema import PromptGroup, Response
from fuserl.reporting.statistics import RESAMPLES, bootstrap
from fuserl.rewards.described import described
from fuserl.rewards.findings import FIELD
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import sampling_of

NORMAL = 1.959963984540054  # its 97.5 % quantile
PERCENT = 100.0

Measure = Callable[[Sequence[PromptGroup]], list[Number]]


@dataclass(frozen=True)
class Verifiable:
    """A benchmark that a scorer of `fuserl score` grades.

    Args:
        sampling: fields of `Sampling`.
        samples: answers a question.
        measure: graded groups -> numbers, the one that tables show first.

    Raises:
        FuserlError: a setting is out of its range.
    """

    name: str
    questions: Questions
    sampling: Mapping[str, Any]
    samples: int
    measure: Measure

    def __post_init__(self) -> None:
        where = f"`benchmarks.{self.name}.samples`"
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise FuserlError(f"`samples` is {self.samples!r}", where=where, hint="a whole number, 1 or more")
        most = max((getattr(self.measure, "keywords", None) or {}).get("k") or [1])
        if self.samples < most:
            raise FuserlError(
                f"pass@{most} needs {most} answers a question, and {self.samples} are asked for",
                where=where,
                hint=f"give `benchmarks.{self.name}.samples={most}`, or leave that k out of `measure.k`",
            )
        self._drawn()

    def _drawn(self) -> Sampling:
        return sampling_of(self.sampling, f"`benchmarks.{self.name}.sampling`")

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`."""
        return self.questions.texts()

    def identity(self) -> Mapping[str, Any]:
        """Questions, how answers are drawn, how they are counted."""
        return {
            "questions": self.questions.digest,
            "sampling": dict(self.sampling),
            "samples": self.samples,
            "measure": described(self.measure),
        }

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        found = work.answered([Question(group, self._drawn(), self.samples) for group in self.questions.groups])
        answered = [group for group in found if group.responses]
        graded = work.scored(answered) if answered else []
        counts, notes = counted(found, graded, self.samples)
        about = {"questions": self.questions.path, "digest": self.questions.digest, "sampling": dict(self.sampling)}
        rows = [row(group, response) for group in graded for response in group.responses]
        return Result(tuple(self.measure(graded)), counts, about, rows, notes)


def counted(
    found: Sequence[PromptGroup], graded: Sequence[PromptGroup], samples: int
) -> tuple[dict[str, int], tuple[str, ...]]:
    """What a reader must know beside a number: counts, and a sentence where something is missing."""
    answers = [response for group in graded for response in group.responses]
    counts = {
        "prompts": len(found),
        "answers": len(answers),
        "unanswered": len(found) * samples - len(answers),
        "unfinished": sum(response.finish_reason == "length" for response in answers),
        "unknown": sum(row(group, response).score is None for group in graded for response in group.responses),
    }
    notes = {
        "unanswered": f"{counts['unanswered']:,} of {len(found) * samples:,} answers did not come",
        "unknown": f"{counts['unknown']:,} of {len(answers):,} answers have no verdict",
    }
    return counts, tuple(
        f"{note}: left out of the numbers, neither right nor wrong" for key, note in notes.items() if counts[key]
    )


def row(group: PromptGroup, response: Response) -> Graded:
    """An answer for `graded.jsonl`: 1 right, 0 wrong, or its reward where nothing is verified."""
    verified = {"right": 1.0, "wrong": 0.0, None: response.reward}
    score = verified.get(response.verdict)
    tokens, cut = int(response.extra.get("response_tokens") or 0), response.finish_reason == "length"
    return Graded(group.id, group.prompt[-1].content, response.text, score, response.sample, tokens, cut)


def share_of(values: Sequence[float], name: str) -> Number:
    """Mean of shares, one a prompt, in percent: Wilson's interval (1927) of yes and no, a bootstrap of anything else."""
    if not values:
        return Number(name, None)
    shares = np.asarray(values, dtype=np.float64)
    mean, n = float(shares.mean()), len(shares)
    if not ((shares == 0) | (shares == 1)).all():
        found = bootstrap(shares)
        return Number(name, PERCENT * mean, PERCENT * found.low, PERCENT * found.high, "prompts, bootstrap")
    centre, square = mean + NORMAL**2 / (2 * n), 1 + NORMAL**2 / n
    reach = NORMAL * math.sqrt(mean * (1 - mean) / n + NORMAL**2 / (4 * n * n))
    low, high = max(0.0, (centre - reach) / square), min(1.0, (centre + reach) / square)
    return Number(name, PERCENT * mean, PERCENT * low, PERCENT * high, "prompts, Wilson")


def accuracy(groups: Sequence[PromptGroup]) -> list[Number]:
    """Share of right answers: the mean over prompts of the mean over samples."""
    return [share_of([sum(known) / len(known) for known in map(_known, groups) if known], "accuracy")]


def mean_reward(groups: Sequence[PromptGroup], *, name: str) -> list[Number]:
    """Mean reward of the answers, in the grader's units: the mean over prompts of the mean over samples.

    Args:
        name: what tables call it.
    """
    rewards = [[r.reward for r in group.responses if r.reward is not None] for group in groups]
    means = [sum(found) / len(found) for found in rewards if found]
    if not means:
        return [Number(name, None)]
    found = bootstrap(np.array(means))
    return [Number(name, found.mean, found.low, found.high, "prompts, bootstrap")]


def pass_at(groups: Sequence[PromptGroup], *, k: Sequence[int]) -> list[Number]:
    """pass@k for each k, by the unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, Eq. 1).

    Raises:
        FuserlError: a prompt has fewer than k answers with a verdict.
    """
    known = [found for found in map(_known, groups) if found]
    if known and (most := min(map(len, known))) < max(k):
        raise FuserlError(
            f"pass@{max(k)} needs {max(k)} answers a prompt, and one has {most} with a verdict",
            where="`measure.k`",
            hint="ask for more samples, or leave that k out",
        )
    return [share_of([unbiased(len(found), sum(found), one) for found in known], f"pass@{one}") for one in k]


def unbiased(num_samples: int, num_right: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one.

    >>> unbiased(10, 3, 1), unbiased(10, 0, 5), unbiased(4, 3, 2)
    (0.3, 0.0, 1.0)
    """
    return round(1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k), 15)


def ifeval(groups: Sequence[PromptGroup]) -> list[Number]:
    """IFEval's four shares, from the graders `strict` and `loose`: of prompts whose constraints are all kept, of constraints."""
    numbers = []
    for reading in ("strict", "loose"):
        whole, kept, totals = [], [], []
        for group in groups:
            total = len(group.extra["instruction_id_list"])
            for response in group.responses:
                found = response.extra[FIELD].get(reading, {})
                if found.get("verdict") in ("right", "wrong"):
                    whole.append(float(found["verdict"] == "right"))
                    kept.append(round(found["reward"] * total))
                    totals.append(total)
        numbers.append(share_of(whole, f"{reading}_prompt_accuracy"))
        numbers.append(share_within(kept, totals, f"{reading}_instruction_accuracy"))
    return [*numbers[::2], *numbers[1::2]]


def share_within(kept: Sequence[int], totals: Sequence[int], name: str) -> Number:
    """Share of constraints, in percent. Those of one prompt go together: a bootstrap draws prompts."""
    if not totals:
        return Number(name, None)
    counts = np.array([kept, totals], dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(totals), size=(RESAMPLES, len(totals)))
    drawn = counts[:, draws].sum(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    mean = float(counts[0].sum() / counts[1].sum())
    return Number(name, PERCENT * mean, PERCENT * float(low), PERCENT * float(high), "prompts, bootstrap")


def _known(group: PromptGroup) -> list[bool]:
    """Whether right, of every answer with a verdict."""
    return [response.verdict == "right" for response in group.responses if response.verdict in ("right", "wrong")]

"""What can be measured of a run: columns of `metrics.csv`, numbers of `summary.json`, scores of the test by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.benchmarks.results import AVERAGE
from fuserl.evaluation.runs import Answer, Run

TEST = {  # by prompt; each also by domain, as test/score/domain/NAME
    "test/score": lambda answer: answer.score,
    "test/tokens": lambda answer: answer.tokens,
    "test/unfinished": lambda answer: answer.unfinished,
}
LOWER = {"nll", "loss", "perplexity", "unfinished", "seconds", "train_seconds", "peak_memory_mb", "data_seconds"}
OF_BENCHMARK = "evaluation"  # then a benchmark: its grades by prompt; and then a number's name: that number
HIGHER = {"score", "accuracy", "margin", "chosen_logps", "chosen_logps_per_token", "tokens_per_second", "win_rate"}
LENGTHS = {"avg_length", "answer_length"}  # numbers of benchmarks that are neither good nor bad
MAIN = (  # columns of the table, where they were measured
    "test/score",
    "val/nll",
    "val/accuracy",
    "val/margin",
    "probe/score",
    "test/tokens",
    "test/unfinished",
    "train_seconds",
)


class Metric(NamedTuple):
    """What is compared."""

    name: str
    at: str  # "last" or "best" of a run's steps

    @property
    def direction(self) -> int:
        """1: higher is better, -1: lower is, 0: neither, a length say."""
        parts = set(self.name.split("/domain/")[0].split("/source/")[0].split("/"))
        if OF_BENCHMARK in parts:
            return 0 if parts & LENGTHS else 1
        return 1 if parts & HIGHER else -1 if parts & LOWER else 0

    @property
    def told(self) -> str:
        """Its name with its direction, for people."""
        direction = {1: "higher is better", -1: "lower is better", 0: "neither way is better"}[self.direction]
        at = "" if self.at == "last" else f", {self.at} of each run"
        return f"{self.name}{at} ({direction})"


class Scores(NamedTuple):
    """A metric of several runs, [runs, prompts]; one prompt where the metric knows none."""

    values: np.ndarray
    prompts: tuple[str, ...]  # empty where it knows none


def value(run: Run, metric: Metric) -> float | None:
    """A run's number; None where it was not measured."""
    if metric.name in run.series:
        values = [number for _, number in run.series[metric.name]]
        if metric.at == "best" and metric.direction:
            return max(values) if metric.direction > 0 else min(values)
        return values[-1]
    by_prompt = prompt_means(run, metric.name)
    return float(np.mean(list(by_prompt.values()))) if by_prompt else numbers(run).get(metric.name)


def prompt_means(run: Run, name: str) -> dict[str, float]:
    """Mean over the answers to each prompt of the test; empty where the metric is none of the test."""
    base, _, domain = name.partition("/domain/")
    if base in TEST:
        rows = [(a.prompt_id, TEST[base](a)) for a in run.answers if domain in ("", a.domain)]
    elif (benchmark := _benchmark(name)) is not None:
        rows = [(row.prompt_id, row.score) for row in run.graded(benchmark)]
    else:
        return {}
    found: dict[str, list[float]] = {}
    for prompt, number in rows:
        if number is not None:
            found.setdefault(prompt, []).append(number)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def _benchmark(name: str) -> str | None:
    """The benchmark whose grades a metric is; None for other metrics."""
    first, _, rest = name.partition("/")
    return rest if first == OF_BENCHMARK and "/" not in rest and rest != AVERAGE else None


def scores(runs: Sequence[Run], metric: Metric) -> Scores:
    """A metric of runs that all have it; of the test, on the prompts that all of them answered and could be graded on."""
    tables = [prompt_means(run, metric.name) for run in runs]
    if all(tables):
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        if shared:
            return Scores(np.array([[table[prompt] for prompt in shared] for table in tables]), tuple(shared))
    return Scores(np.array([[value(run, metric)] for run in runs], dtype=np.float64), ())


def numbers(run: Run) -> dict[str, float]:
    """Numbers of a run by name: those at the top of `summary.json`, and those of benchmarks with their average."""
    found = {name: number for name, number in run.summary.items() if not isinstance(number, Mapping)}
    for benchmark, result in run.benchmarks.items():
        found |= {f"{OF_BENCHMARK}/{benchmark}/{one.name}": one.value for one in result.numbers}
    if mean := results.average(results.heads(run.benchmarks).values()):
        found[f"{OF_BENCHMARK}/{mean.name}"] = mean.value
    return {name: float(n) for name, n in found.items() if isinstance(n, int | float) and not isinstance(n, bool)}


def available(run: Run) -> set[str]:
    """The metrics that a run has."""
    by_prompt = {
        f"{OF_BENCHMARK}/{name}" for name in run.benchmarks if any(r.score is not None for r in run.graded(name))
    }
    return set(run.series) | set(numbers(run)) | set(_of_test(run.answers)) | by_prompt


def _of_test(answers: Sequence[Answer]) -> Iterator[str]:
    domains = sorted({answer.domain for answer in answers})
    for name, number in TEST.items():
        if any(number(answer) is not None for answer in answers):
            yield name
            yield from (f"{name}/domain/{domain}" for domain in domains)


def shared_by_all(runs: Sequence[Run]) -> set[str]:
    """The metrics that all runs have."""
    return set.intersection(*(available(run) for run in runs))

"""Methods beside each other: means with intervals, and the test of each against a baseline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.results import AVERAGE
from fuserl.evaluation.measures import OF_BENCHMARK, Metric, available, scores, shared_by_all
from fuserl.evaluation.methods import Method
from fuserl.evaluation.runs import Run
from fuserl.reporting.statistics import Estimate, Numbers, bootstrap_ends, holm, two_way, unmatched

SIGNIFICANT = 0.05  # of the corrected p
ENOUGH = 3  # seeds in common that are worth leaving out the others for


@dataclass(frozen=True)
class Row:
    """One method in the table; numbers are None where there is nothing to say."""

    method: Method
    mean: float
    low: float | None
    high: float | None
    over: str  # what the interval speaks for
    difference: float | None = None  # to the baseline
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    test: str = ""  # how it was paired
    verdict: str = ""  # in words


@dataclass(frozen=True)
class Comparison:
    """All methods, the best first."""

    metric: Metric
    rows: tuple[Row, ...]
    baseline: Method | None
    num_prompts: int  # that all runs were tested on; 0 where the metric knows none

    @property
    def methods(self) -> list[Method]:
        """In the order of the rows."""
        return [row.method for row in self.rows]

    @property
    def runs_by_label(self) -> dict[str, tuple[Run, ...]]:
        """In the order of the rows."""
        return {row.method.label: row.method.runs for row in self.rows}


def chosen_metric(runs: Sequence[Run], wanted: str | None, at: str) -> Metric:
    """The metric to compare; without a wish the first of these that all runs have: the test's score, the average over
    benchmarks, a benchmark's grades, the validation NLL.

    Raises:
        FuserlError: no run has it, or the runs have none in common.
    """
    if at not in ("last", "best"):
        raise FuserlError(f"`{at}` is no place in a run", where="`at`", hint="`last` or `best`")
    shared = shared_by_all(runs)
    if wanted is None:
        benchmarks = sorted(name for name in shared if name.startswith(f"{OF_BENCHMARK}/") and name.count("/") == 1)
        for name in ("test/score", f"{OF_BENCHMARK}/{AVERAGE}", *benchmarks, "val/nll"):
            if name in shared:
                return Metric(name, at)
        some = ", ".join(sorted(name for name in shared if name.count("/") == 1)) or "none"
        raise FuserlError(
            "the runs have neither a test, nor a benchmark, nor a validation NLL in common",
            where="`metric`",
            hint=f"name one with `metric=...`; all runs have: {some}",
        )
    known = set.union(*(available(run) for run in runs))
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else "see the columns of metrics.csv"
        )
        raise FuserlError(f"no run has the metric `{wanted}`", where="`metric`", hint=hint)
    return Metric(wanted, at)


def compared(methods: Sequence[Method], metric: Metric, baseline: Method | None) -> Comparison:
    """The table. Every run must have the metric."""
    runs = [run for method in methods for run in method.runs]
    table = scores(runs, metric)
    at = {run.path: index for index, run in enumerate(runs)}

    def of(chosen: Sequence[Run]) -> np.ndarray:
        return table.values[[at[run.path] for run in chosen]]

    rows = [_row(method, of(method.runs)) for method in methods]
    if baseline is not None:
        rows = [row if row.method is baseline else _tested(row, baseline, of, metric) for row in rows]
        adjusted = holm(np.array([np.nan if row.p is None else row.p for row in rows]))
        rows = [_judged(row, baseline, float(p), metric) for row, p in zip(rows, adjusted, strict=True)]
    rows.sort(key=lambda row: -row.mean * (metric.direction or 1))
    return Comparison(metric, tuple(rows), baseline, len(table.prompts))


def _row(method: Method, values: np.ndarray) -> Row:
    low, high = bootstrap_ends(values)
    num_seeds, num_prompts = values.shape
    over = (
        "seeds and prompts" if min(num_seeds, num_prompts) > 1 else "seeds" if num_seeds > 1 else "prompts, of one seed"
    )
    return Row(
        method, float(values.mean()), _known(low), _known(high), over if _known(low) is not None else "one seed: none"
    )


def _tested(row: Row, baseline: Method, of, metric: Metric) -> Row:
    estimate, how = difference(row.method, baseline, of)
    low, high = estimate.ends()
    return replace(
        row,
        difference=float(estimate.mean),
        difference_low=_known(low),
        difference_high=_known(high),
        p=_known(estimate.p_value()),
        test=how,
    )


def difference(method: Method, baseline: Method, of) -> tuple[Estimate, str]:
    """Method less baseline, with the words for how it was paired.

    Args:
        of: the scores of runs, [runs, prompts].
    """
    ours, theirs = method.by_seed, baseline.by_seed
    common = sorted(ours.keys() & theirs.keys()) if ours and theirs else []
    if ours and theirs and common and (len(common) >= ENOUGH or ours.keys() == theirs.keys()):
        gaps = of([ours[seed] for seed in common]) - of([theirs[seed] for seed in common])
        return two_way(gaps), _words(gaps.shape, paired=True)
    left, right = of(method.runs), of(baseline.runs)
    return unmatched(left, right), _words((min(len(left), len(right)), left.shape[1]), paired=False)


def _words(shape: tuple[int, ...], *, paired: bool) -> str:
    num_seeds, num_prompts = shape
    if num_seeds == 1:
        return (
            "paired by prompt; one seed: nothing is known of training's own noise"
            if num_prompts > 1
            else "no test: one seed"
        )
    seeds = "paired by seed" if paired else "seeds apart (Welch)"
    few = "; two seeds are too few to trust it" if num_seeds == 2 else ""
    return (
        seeds + (" and prompt" if num_prompts > 1 and paired else ", paired by prompt" if num_prompts > 1 else "") + few
    )


def _judged(row: Row, baseline: Method, p_holm: float, metric: Metric) -> Row:
    if row.method is baseline:
        return replace(row, verdict="baseline")
    if row.p is None:
        return replace(row, verdict="not tested")
    better, worse = ("better", "worse") if metric.direction else ("higher", "lower")
    ahead = (row.difference or 0.0) * (metric.direction or 1) > 0
    verdict = "not told apart" if p_holm >= SIGNIFICANT else better if ahead else worse
    return replace(row, p_holm=p_holm, verdict=verdict)


def _known(number: Numbers) -> float | None:
    return float(number) if np.isfinite(number) else None


def by_domain(comparison: Comparison, domains: Sequence[str], name: str) -> dict[str, list[Row | None]]:
    """Each method's row for each domain, in the order of the comparison's methods; None where a run lacks it."""
    found: dict[str, list[Row | None]] = {}
    for domain in domains:
        metric = Metric(f"{name}/domain/{domain}", comparison.metric.at)
        found[domain] = [_row_of(method, metric) for method in comparison.methods]
    return found


def _row_of(method: Method, metric: Metric) -> Row | None:
    if any(metric.name not in available(run) for run in method.runs):
        return None
    return _row(method, scores(method.runs, metric).values)

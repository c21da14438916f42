"""A result without the questions that the model was trained on, beside the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fuserl.evaluation.benchmarks.contamination import Overlap
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Result
from fuserl.evaluation.benchmarks.verifiable import share_of
from fuserl.reporting.statistics import bootstrap

PREFIX = "clean_"  # of the first number, over the questions that the training data does not hold
SAME = 1e-6  # of a number and the mean of its grades


def without(result: Result, rows: Sequence[Graded], overlap: Overlap, data: str, digest: str) -> Result:
    """What stands behind a result: how many questions the data holds, and its first number over the others.

    The number is made again only where it is the mean of the answers' grades (in percent, or as it is); of others, a
    regression's say, the note tells the mean grades.

    Args:
        rows: the answers with their grades.
        data, digest: what the model was trained on.
    """
    about = {"train_data": data, "train_data_digest": digest}
    counts = {"contaminated": len(overlap.ids), "touched": overlap.touched}
    note = f"{len(overlap.ids):,} of {overlap.questions:,} questions stand in the training data"
    if not overlap.ids:
        return Result((), counts, about, (), (note,))
    dirty = set(overlap.ids)
    every, kept = _means(rows), _means(row for row in rows if row.prompt_id not in dirty)
    first = result.numbers[0] if result.numbers else None
    if first is None or first.value is None or not kept:
        return Result((), counts, about, (), (f"{note}; without them nothing is left to count",))
    mean = sum(every) / len(every)
    for unit in (100.0, 1.0):
        if abs(first.value - unit * mean) <= SAME * max(1.0, abs(first.value)):
            number = _number(PREFIX + first.name, kept, unit)
            return Result((number,), counts, about, (), (f"{note}; `{number.name}` leaves them out",))
    told = f"{note}: the mean grade is {mean:.4g} with them and {sum(kept) / len(kept):.4g} without"
    return Result((), counts, about, (), (told,))


def _number(name: str, means: Sequence[float], unit: float) -> Number:
    if unit == 100.0:
        return share_of(means, name)
    found = bootstrap(np.array(means))
    return Number(name, found.mean, found.low, found.high, "prompts, bootstrap")


def _means(rows: Iterable[Graded]) -> list[float]:
    """The mean grade of each question that has one."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            found.setdefault(row.prompt_id, []).append(row.score)
    return [sum(scores) / len(scores) for scores in found.values()]

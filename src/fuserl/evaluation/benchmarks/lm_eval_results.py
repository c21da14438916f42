"""What lm-eval found out, in our words: numbers with intervals, a grade a question, hashes of what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fuserl.evaluation.benchmarks.protocol import Graded, Number

NORMAL = 1.959963984540054  # its 97.5 % quantile
UNNAMED = ("none", "default")  # names of filters that say nothing

Found = Mapping[str, Any]  # what `lm_eval.simple_evaluate` gives


def roots(found: Found) -> list[str]:
    """Names of tasks and groups that stand under no other; of a group without numbers, its members."""
    members = found["group_subtasks"]
    inner = {child for children in members.values() for child in children}

    def with_numbers(name: str) -> Iterator[str]:
        if any(_metrics(found, name)):
            yield name
        else:
            for child in members.get(name, ()):
                yield from with_numbers(child)

    return [name for top in found["results"] if top not in inner for name in with_numbers(top)]


def numbers(found: Found, names: list[str], first: str | None, unit: float) -> list[Number]:
    """Every metric of these tasks, with 1.96 standard errors on both sides.

    Args:
        first: METRIC,FILTER that comes before all others.
        unit: what values are multiplied by.
    """
    wanted = [(name, *metric) for name in names for metric in _metrics(found, name)]
    wanted.sort(key=lambda one: f"{one[1]},{one[2]}" != first)
    told = {name: name if len(names) > 1 else "" for name in names}
    return [_number(found["results"][name], told[name], metric, chosen, unit) for name, metric, chosen in wanted]


def graded(found: Found, first: str | None, unit: float) -> list[Graded]:
    """A row a question, by one metric and one filter: `first`, else those that a task names first."""
    rows = []
    for task, samples in found.get("samples", {}).items():
        for sample in samples:
            metric, chosen = (first or f"{samples[0]['metrics'][0]},{samples[0]['filter']}").split(",", 1)
            if sample["filter"] == chosen and metric in sample["metrics"]:
                better = found["higher_is_better"].get(task, {}).get(metric)
                rows.append(_graded(task, sample, metric, -1.0 if better is False else 1.0))
    return rows


def task_hashes(found: Found) -> dict[str, str]:
    """16 hexadecimal digits of each task's settings and questions."""
    questions = {
        task: [[row["doc_hash"], row["prompt_hash"], row["target_hash"]] for row in rows]
        for task, rows in found.get("samples", {}).items()
    }
    return {
        task: hashlib.sha256(
            json.dumps([settings, questions.get(task)], sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        for task, settings in found["configs"].items()
    }


def _metrics(found: Found, name: str) -> Iterator[tuple[str, str]]:
    """(metric, filter) of all numbers of a task."""
    for key, value in found["results"][name].items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            yield metric, chosen


def _number(values: Mapping[str, Any], task: str, metric: str, chosen: str, unit: float) -> Number:
    value, error = float(values[f"{metric},{chosen}"]), values.get(f"{metric}_stderr,{chosen}")
    name = "/".join(part for part in (task, metric) if part) + ("" if chosen in UNNAMED else f":{chosen}")
    if not isinstance(error, int | float):
        return Number(name, unit * value)
    reach = NORMAL * float(error)
    return Number(
        name, unit * value, unit * (value - reach), unit * (value + reach), "questions, lm-eval's standard error"
    )


def _graded(task: str, sample: Mapping[str, Any], metric: str, sign: float) -> Graded:
    value, arguments = sample[metric], sample["arguments"]
    said = [one[0] for one in sample["resps"]]
    detail = {"target": str(sample["target"]), "filtered": str(sample["filtered_resps"][0]), "metric": metric}
    if isinstance(said[0], tuple | list):
        detail |= {"log_probs": [float(one[0]) for one in said], "filtered": ""}
        answer = str(arguments[max(range(len(said)), key=lambda place: said[place][0])][1])
    else:
        answer = str(said[0])
    score = sign * float(value) if isinstance(value, int | float) else None
    return Graded(f"{task}/{sample['doc_id']}", str(arguments[0][0]), answer, score, detail=detail)

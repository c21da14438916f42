"""Runs that differ only in the seed are one method; its name is what tells it from the others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from fuserl.errors import FuserlError
from fuserl.evaluation.runs import Run, settings_in
from fuserl.settings import FREE, decisive

# What decides neither the trained model nor what is measured of it; the seed is what a method averages over.
NOT_OF_A_METHOD = (
    *FREE,
    "seed",
    "metric",
    "alarm",
    "trainer.log_every",
    "trainer.num_workers",
    "checkpoint.every",
)
MODELS = (
    "target.path",
    "reference.path",
    "model",
    "base",
    "experts",
)  # settings that may name models which others have made
PREFERRED = (
    "objective.name",
    "weights",
    "data",
    "target.path",
    "name",
    "model",
)  # how a method is named, the best first
ABSENT = "\N{EM DASH}"  # a setting that a method does not have


@dataclass(frozen=True)
class Method:
    """Runs of one method, by seed."""

    label: str  # unique in a comparison
    settings: Mapping[str, str]  # what tells it from other methods: dotted key -> value as text
    runs: tuple[Run, ...]

    @property
    def by_seed(self) -> dict[int, Run] | None:
        """Its runs by seed; None where two runs share one."""
        found = {run.seed: run for run in self.runs}
        return found if len(found) == len(self.runs) else None


def methods_of(
    runs: Sequence[Run], by: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> list[Method]:
    """Runs grouped into methods, each with a label.

    Args:
        by: the settings that tell methods apart, whole keys or last parts; None: whatever differs.
        names: shown instead of a label.

    Raises:
        FuserlError: no run has a setting of `by`, or `names` names no method.
    """
    every = _settings(runs)
    differing = _differing(every)
    keys = [_key(name, every) for name in by] if by else differing
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, one in enumerate(every):
        groups[tuple(one.get(key) for key in keys)].append(index)
    firsts = [every[members[0]] for members in groups.values()]
    chosen = keys if by else _telling(firsts, differing)
    labels = _labels(firsts, chosen or ["objective.name"])
    shown = _shown(labels, names or {})
    return [
        Method(label, {key: _text(key, one.get(key), firsts) for key in chosen}, tuple(runs[i] for i in members))
        for label, one, members in zip(shown, firsts, groups.values(), strict=True)
    ]


def only_with(runs: Sequence[Run], wanted: Any) -> list[Run]:
    """Runs that have these settings, whole keys or last parts.

    Raises:
        FuserlError: no run has such a setting, or none has all these values.
    """
    every = _settings(runs)
    if not isinstance(wanted, Mapping):
        raise FuserlError(
            f"`only` is {wanted!r}", where="`only`", hint="give settings and values, as in only={seed: 0}"
        )
    texts = {_key(name, every, "`only`"): json.dumps(value, sort_keys=True) for name, value in wanted.items()}
    kept = [run for run, one in zip(runs, every, strict=True) if all(one.get(key) == texts[key] for key in texts)]
    if not kept:
        there = "; ".join(f"{key} is {', '.join(sorted({one.get(key, 'absent') for one in every}))}" for key in texts)
        raise FuserlError("no run has these settings", where="`only`", hint=there)
    return kept


def _settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What decides each run apart from its seed, as JSON texts by key; a model that a run trained is that run's method."""
    outputs = {str(run.config.get("output")): run.config for run in runs}
    return [_decisive(run.config, outputs) for run in runs]


def _decisive(config: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]], depth: int = 0) -> dict[str, str]:
    flat = dict(decisive(config, NOT_OF_A_METHOD))
    for key in MODELS:
        if key in flat:
            flat[key] = _made(flat[key], outputs, depth)
    return {key: json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) for key, value in flat.items()}


def _made(path: Any, outputs: Mapping[str, Mapping[str, Any]], depth: int) -> Any:
    """A model's path, or the method that made it, of each where there are several."""
    if isinstance(path, list):
        return [_made(one, outputs, depth) for one in path]
    maker = _maker_of(path, outputs) if depth < 8 else None
    if maker is None:
        return path
    content = json.dumps(_decisive(maker, outputs, depth + 1), sort_keys=True)
    name = (maker.get("objective") or maker.get("merge") or {}).get("name", "run")
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"


def _maker_of(path: Any, outputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The settings of the run or merge that made a model; None where neither did."""
    if not isinstance(path, str):
        return None
    folder = Path(path).parent if Path(path).name == "model" else Path(path)
    if str(folder) in outputs:
        return outputs[str(folder)]
    try:
        return settings_in(folder)
    except (OSError, ValueError, YAMLError):
        return None


def _differing(every: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which runs differ, in the order in which a name would like to have them."""
    keys = dict.fromkeys(key for one in every for key in one)
    return sorted((key for key in keys if len({one.get(key) for one in every}) > 1), key=_rank)


def _rank(key: str) -> tuple:
    places = [place for place, wanted in enumerate(PREFERRED) if key == wanted or key.startswith(f"{wanted}.")]
    return (min(places, default=len(PREFERRED)), key.count("."), not key.endswith("._target_"), key)


def _telling(every: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """The keys that each tell apart what those before could not: none is determined by the ones before it."""
    chosen: list[str] = []
    classes = 1
    for key in keys:
        now = len({tuple(one.get(k) for k in (*chosen, key)) for one in every})
        if now > classes:
            chosen, classes = [*chosen, key], now
    return chosen


def _key(name: str, every: Sequence[Mapping[str, str]], where: str = "`by`") -> str:
    """The one setting that a name means."""
    known = {key for one in every for key in one}
    if name in known:
        return name
    ending = sorted(key for key in known if key.endswith(f".{name}"))
    if not ending:
        differing = ", ".join(_differing(every)) or "none"
        raise FuserlError(f"no run has a setting `{name}`", where=where, hint=f"runs differ in: {differing}")
    return min(ending, key=_rank)


def _labels(every: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    shorts = {key: _short(key) for key in keys}
    counts = Counter(shorts.values())
    shorts = {key: short if counts[short] == 1 else key for key, short in shorts.items()}
    labels = []
    for one in every:
        parts = [f"{shorts[key]}={_text(key, one[key], every)}" for key in keys if key in one]
        labels.append(", ".join(parts) or f"{shorts[keys[0]]}={ABSENT}")
    if len(set(labels)) < len(labels):  # a setting that is absent makes the difference
        labels = [", ".join(f"{shorts[key]}={_text(key, one.get(key), every)}" for key in keys) for one in every]
    return labels if len(set(labels)) == len(labels) else [f"{label} ({i})" for i, label in enumerate(labels, 1)]


def _short(key: str) -> str:
    """
    >>> _short("weights.tau"), _short("objective.name"), _short("weights._target_"), _short("target.path")
    ('tau', 'objective', 'weights', 'target')
    """
    parts = key.split(".")
    own = parts[-1] not in ("name", "path", "_target_")
    return parts[-1] if own or len(parts) == 1 else parts[-2]


def _text(key: str, value: str | None, every: Sequence[Mapping[str, str]]) -> str:
    """A value as it stands in a label: paths and functions by their last part, where that is enough to tell them apart."""
    if value is None:
        return ABSENT
    plain = json.loads(value)
    if not isinstance(plain, str):
        return value.replace('"', "").replace(", ", ",") if isinstance(plain, list | dict) else value
    sign = "." if key.endswith("_target_") else "/"
    others = {json.loads(one[key]) for one in every if key in one}
    tails = Counter(str(other).rstrip(sign).rsplit(sign, 1)[-1] for other in others)
    tail = plain.rstrip(sign).rsplit(sign, 1)[-1]
    return tail if tail and tails[tail] == 1 and key.endswith(("_target_", "path")) else plain


def _shown(labels: Sequence[str], names: Mapping[str, str]) -> list[str]:
    if unknown := sorted(names.keys() - set(labels)):
        raise FuserlError(
            f"no method is called `{unknown[0]}`", where="`names`", hint=f"there are: {'; '.join(labels)}"
        )
    shown = [names.get(label, label) for label in labels]
    if len(set(shown)) < len(shown):
        raise FuserlError("two methods would have one name", where="`names`", hint=f"there are: {'; '.join(shown)}")
    return shown


def method_named(methods: Sequence[Method], wanted: str, where: str) -> Method:
    """The method of a label, or the only one whose settings have all the parts that are wanted (`tau=0.1`, `fusesft`).

    Raises:
        FuserlError: none or several do; with those that exist.
    """
    exact = [method for method in methods if method.label == wanted]
    pieces = {piece.strip() for piece in wanted.split(",")}
    having = exact or [method for method in methods if pieces <= _parts(method)]
    if len(having) == 1:
        return having[0]
    raise FuserlError(
        f"{len(having) or 'no'} methods match `{wanted}`",
        where=where,
        hint=f"there are: {'; '.join(method.label for method in methods)}",
    )


def _parts(method: Method) -> set[str]:
    label = {piece.strip() for piece in method.label.split(",")}
    return label | {f"{key}={value}" for key, value in method.settings.items()} | set(method.settings.values())

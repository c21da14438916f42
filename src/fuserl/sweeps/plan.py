"""Which jobs a sweep has, and the folder of each: known before the first one starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.settings import compose, config_folder, plain
from fuserl.training.folder import digest

VERBS = ("train", "pipeline")  # what can be swept


@dataclass(frozen=True)
class Job:
    """One choice of the swept settings."""

    overrides: tuple[str, ...]
    label: str  # the swept settings alone
    folder: Path


@dataclass(frozen=True)
class Sweep:
    """A verb with all its jobs."""

    verb: str
    folder: Path
    overrides: tuple[str, ...]  # as given
    jobs: tuple[Job, ...] | None  # None: a searching sweeper finds them as it goes


def planned(verb: str, overrides: Sequence[str]) -> Sweep:
    """Compose every job of `overrides`, in which `key=a,b` is a choice.

    Raises:
        FuserlError: the verb cannot be swept, a setting is wrong, or two choices are one.
    """
    if verb not in VERBS:
        raise FuserlError(
            f"`fuserl {verb}` does not sweep",
            where="`--multirun`",
            hint=f"{' and '.join(VERBS)} do; run the others once for each setting",
        )
    parsed = _parsed(overrides)
    folder = Path(_value(parsed, "output") or _default_folder(verb, overrides))
    parsed = [one for one in parsed if one.key_or_group != "output"]
    sweeper = _sweeper(verb, parsed)
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return Sweep(verb, folder, tuple(overrides), None)
    inherited = _parsed([f"{key}={value}" for key, value in (sweeper.params or {}).items()])
    chosen = {one.get_key_element() for one in parsed}
    combinations = _combinations([*(one for one in inherited if one.get_key_element() not in chosen), *parsed])
    swept = _swept(combinations)
    jobs = [_job(verb, folder, combination, swept) for combination in combinations]
    _require_distinct(jobs)
    return Sweep(verb, folder, tuple(overrides), tuple(jobs))


def job_folder(verb: str, sweep: Path, cfg: DictConfig) -> Path:
    """Where a job of the sweep writes: named by what decides its result.

    A pipeline's stages lie in the same folder, so that jobs share the stages they have in common.
    """
    if verb == "pipeline":
        from fuserl.training.pipeline import jobs as stages_of  # late: it imports every verb

        stages = [Path(job.output).name for _, job in stages_of(cfg, shared=sweep)]
        return sweep / f"pipeline-{hashlib.sha256(json.dumps(stages).encode()).hexdigest()[:12]}"
    return sweep / digest(verb, plain(cfg))


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Those that concern the verb, not Hydra."""
    return [one.input_line for one in _parsed(overrides) if not _is_hydras(one)]  # type: ignore[misc]


def _job(verb: str, folder: Path, combination: Sequence[str], swept: set[str]) -> Job:
    cfg = compose(verb, list(combination))
    label = ", ".join(_short(one) for one in combination if one.partition("=")[0] in swept)
    return Job(tuple(combination), label or verb, job_folder(verb, folder, cfg))


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.lstrip('+').rpartition('.')[2]}={value}"


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise FuserlError(
            str(error).splitlines()[0],
            where="the command line",
            hint="settings are `key=value`, choices `key=a,b`; quote what has blanks or brackets",
        ) from error


def _is_hydras(one: Override) -> bool:
    return one.key_or_group.partition(".")[0].partition("/")[0] == "hydra"


def _value(parsed: Sequence[Override], key: str) -> str | None:
    found = [one.get_value_element_as_str() for one in parsed if one.key_or_group == key]
    return found[-1].strip("'\"") if found else None


def _default_folder(verb: str, overrides: Sequence[str]) -> str:
    content = json.dumps([verb, sorted(without_hydra(overrides))])
    return f"runs/sweep-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _sweeper(verb: str, parsed: Sequence[Override]) -> DictConfig:
    """Hydra's settings of the sweeper, as the command line and the overlays of `conf/sweep` leave them."""
    first = [row[0] for row in _lists(parsed)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            return hydra_compose(verb, first, return_hydra_config=True).hydra.sweeper
    except HydraException as error:
        compose(verb, [one for one in first if not one.startswith("hydra")])  # tells what is wrong in our form
        text = " ".join(str(error).split())
        raise FuserlError(
            text, where="`--multirun`", hint=f"`fuserl {verb} --help` lists settings and groups"
        ) from error
    finally:
        GlobalHydra.instance().clear()


def _lists(parsed: Sequence[Override]) -> list[list[str]]:
    """The choices of every setting; a continuous one counts with its key alone."""
    rows: dict[str, list[str]] = {}
    for one in parsed:
        key = one.get_key_element()
        if one.is_discrete_sweep():
            rows[key] = [f"{key}={value}" for value in one.sweep_string_iterator()]
        elif not one.is_sweep_override():
            rows[key] = [one.input_line or f"{key}={one.get_value_element_as_str()}"]
    return list(rows.values())


def _combinations(parsed: Sequence[Override]) -> list[list[str]]:
    """Every job's overrides, the last setting changing fastest, as Hydra's own sweeper has them."""
    try:
        (batch,) = BasicSweeper.split_arguments([one for one in parsed if not _is_hydras(one)], None)
    except HydraException as error:
        raise FuserlError(
            str(error),
            where="`--multirun`",
            hint="ranges such as `interval(0,1)` are searched: add `hydra/sweeper=optuna`",
        ) from error
    return batch


def _swept(combinations: Sequence[Sequence[str]]) -> set[str]:
    """Keys that take more than one value."""
    return {column[0].partition("=")[0] for column in zip(*combinations, strict=True) if len(set(column)) > 1}


def _require_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        if (before := seen.setdefault(job.folder, job)) is not job:
            raise FuserlError(
                f"`{before.label}` and `{job.label}` are one job: nothing that decides its result differs",
                where="`--multirun`",
                hint="leave one of them out",
            )

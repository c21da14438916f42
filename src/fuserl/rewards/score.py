"""The verb `score`: groups and scorers in, groups with rewards and verdicts out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport
from fuserl.records.journal import locked
from fuserl.records.manifest import read_manifest, write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.rewards.asking import Asked, asked_of
from fuserl.rewards.combine import Combination, named
from fuserl.rewards.findings import GIVEN, entries_of, place_of
from fuserl.rewards.made import made
from fuserl.rewards.written import Input, Output, is_written, write
from fuserl.settings import plain
from fuserl.terminal import bar, say

FREE = ("output",)  # settings that do not change what comes out
ON_FAILURE = ("error", "leave_out")
TOLD = 5  # kinds of failures of a scorer that are told


@dataclass
class Survey:
    """What a first reading finds, before anything costs time."""

    groups: int = 0
    responses: int = 0
    to_do: dict[str, int] = field(default_factory=dict)  # scorer -> responses without a score
    present: set[str] = field(default_factory=set)  # scorers whose scores the data carries already
    report: ReadReport = field(default_factory=ReadReport)


def score(cfg: DictConfig) -> Path:
    """Score as `conf/score.yaml` says; what was scored before is not scored again.

    Returns:
        The folder with the scored groups.

    Raises:
        FuserlError: data or settings cannot work, or answers got no score; what was scored is kept.
    """
    given = plain(cfg)
    if given["on_failure"] not in ON_FAILURE:
        raise FuserlError(
            f"`{given['on_failure']}` is no way to treat failures",
            where="`on_failure`",
            hint=f"one of {', '.join(ON_FAILURE)}",
        )
    folder = Path(given["output"] or Path("runs") / settings.digest("score", given, FREE)).expanduser()
    data = Input(given["data"])
    _require_ours(folder)
    settings.require_whole(1, give_up=given["give_up"])
    settings.require_whole(0, data__limit=given["data"]["limit"])
    with locked(folder), ExitStack() as cleaning:
        asked = [asked_of(name, node, folder, cleaning) for name, node in (given["rewards"] or {}).items()]
        combination = named(made(given["combine"], "combine"), [one.name for one in asked])
        survey = _survey(data, asked)
        carried = _carried(folder, data, {one.name for one in asked})
        _require(combination, survey.present | carried | {one.name for one in asked})
        say(_headline(survey, asked, carried, folder))
        output = Output(folder, asked, combination, frozenset(carried), frozenset(survey.present))
        if not any(survey.to_do.values()) and is_written(data, output, given):
            say(f"nothing new to score; the data set is complete: {folder}")
            return folder
        write_text_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(given)))
        _run(data, asked, survey, folder, given["give_up"])
        _tell_failures(asked, folder, given["on_failure"])
        write(data, output, given, survey.report)
    say(f"done: {folder}")
    return folder


def _require_ours(folder: Path) -> None:
    """Raises: FuserlError: another verb has made the folder; scoring in place would be undone when it writes again."""
    by = read_manifest(folder).extra.get("verb") if (folder / "manifest.json").exists() else "score"
    if by != "score" or any((folder / name).exists() for name in ("sources.json", "summary.json")):
        raise FuserlError(
            "the folder holds something that `fuserl score` did not make",
            where=str(folder),
            hint="give another folder with `output=DIR`; groups can be read from any data set with `data.path=DIR`",
        )


def _run(data: Input, asked: Sequence[Asked], survey: Survey, folder: Path, give_up: int | None) -> None:
    """One scorer after the other; the next one loads when the one before has given back its memory."""
    with (folder / "failures.jsonl").open("w", encoding="utf-8") as failed:
        for one in asked:
            if to_do := survey.to_do[one.name]:
                started = time.monotonic()
                one.run(data.groups(), to_do, failed, give_up)
                one.scorer.close()
                say(f"{one.name}: {to_do:,} answers in {time.monotonic() - started:,.1f} s")


def _survey(data: Input, asked: Sequence[Asked]) -> Survey:
    """Read and check everything once."""
    found = Survey(to_do={one.name: 0 for one in asked})
    with bar("reading", lambda: data.num_groups) as told:
        for group in data.groups(found.report):
            found.groups += 1
            found.responses += len(group.responses)
            found.present.update(*_names(group))
            for one in asked:
                if one.applies(group):
                    found.to_do[one.name] += sum(item.key not in one.journal for item in one.items(group))
            told(found.groups)
    data.num_groups = found.groups
    return found


def _names(group: PromptGroup) -> Iterator[Mapping[str, Any]]:
    return (entries_of(response, place_of(group, response)) for response in group.responses)


def _carried(folder: Path, data: Input, ours: set[str]) -> set[str]:
    """Other scorers whose scores the folder holds; none where the folder itself is the input, which brings them."""
    if not (folder / "manifest.json").exists() or data.path.resolve() == folder.resolve():
        return set()
    return set(read_manifest(folder).extra.get("scorers") or {}) - ours - {GIVEN}


def _require(combination: Combination, known: set[str]) -> None:
    """Raises: FuserlError: the combination needs a scorer that nobody asks, and that the data does not know."""
    if unknown := sorted(combination.reads() - known):
        raise FuserlError(
            f"no scorer `{unknown[0]}` runs, and the data holds no scores of that name",
            where="`combine`",
            hint=f"known are {', '.join(sorted(known)) or 'none'}; such as `reward=[...,{unknown[0]}]`",
        )


def _headline(survey: Survey, asked: Sequence[Asked], carried: set[str], folder: Path) -> str:
    lines = [f"score: {survey.groups:,} prompts, {survey.responses:,} responses, writing {folder}"]
    lines += [f"{one.name}: {survey.to_do[one.name]:,} to score, {len(one.journal):,} known" for one in asked]
    if kept := sorted((survey.present | carried) - {one.name for one in asked}):
        lines.append(f"kept as they are: scores of {', '.join(kept)}")
    if left_out := survey.report.skipped:
        lines.append(f"left out: {len(left_out):,} rows or responses, the first: {': '.join(left_out[0])}")
    return "\n".join(lines)


def _tell_failures(asked: Sequence[Asked], folder: Path, on_failure: str) -> None:
    """Raises: FuserlError: something failed, and nothing may be left without its score."""
    for one in (one for one in asked if one.failures):
        for what, count in one.failures.most_common(TOLD):
            say(f"{one.name}: {count:,} x {what}")
        if one.gave_up:
            say(f"{one.name}: asked no more after `give_up` failures in a row")
    number = sum(one.failures.total() for one in asked)
    if number and on_failure == "error":
        again = "run the same command again, which asks for these alone"
        if lasting := sum(one.lasting for one in asked):
            again += f" ({lasting:,} would fail again)"
        raise FuserlError(
            f"{number:,} answers got no score; the scores of all others are kept",
            where=str(folder / "failures.jsonl"),
            hint=f"{again}; or go on without them: `on_failure=leave_out`",
        )

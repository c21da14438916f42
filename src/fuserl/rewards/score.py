"""The verb `score`: groups and scorers in, groups with rewards and verdicts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport
from fuserl.records.journal import locked
from fuserl.records.manifest import read_manifest
from fuserl.records.schema import PromptGroup
from fuserl.rewards.asking import Asked, asked_of
from fuserl.rewards.combine import Combination, named
from fuserl.rewards.findings import entries_of, place_of
from fuserl.rewards.made import made
from fuserl.rewards.written import Input, Output, write
from fuserl.settings import plain
from fuserl.terminal import bar, say

FREE = ("output",)  # settings that do not change what comes out
ON_FAILURE = ("error", "leave_out")


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
    with locked(folder), ExitStack() as cleaning:
        data = Input(given["data"])
        asked = [asked_of(name, node, folder, cleaning) for name, node in (given["rewards"] or {}).items()]
        combination = named(made(given["combine"], "combine"), [one.name for one in asked])
        survey = _survey(data, asked)
        carried = _carried(folder, data, {one.name for one in asked})
        _require(combination, survey.present | carried | {one.name for one in asked})
        say(_headline(survey, asked, carried, folder))
        for one in asked:
            one.run(data.groups(), survey.to_do[one.name])
            one.scorer.close()
        _tell_failures(asked, given["on_failure"])
        output = Output(folder, asked, combination, frozenset(carried), frozenset(survey.present))
        write(data, output, given, survey.report)
    say(f"done: {folder}")
    return folder


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
    return set(read_manifest(folder).extra.get("scorers") or {}) - ours


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


def _tell_failures(asked: Sequence[Asked], on_failure: str) -> None:
    """Raises: FuserlError: something failed, and nothing may be left without its score."""
    for line in (line for one in asked for line in one.told()):
        say(line)
    number = sum(one.failures.total() for one in asked)
    if number and on_failure == "error":
        raise FuserlError(
            f"{number:,} answers got no score; the scores of all others are kept",
            where=", ".join(f"`{one.name}`" for one in asked if one.failures),
            hint="run the same command again, which asks for these alone, or go on without them: `on_failure=leave_out`",
        )

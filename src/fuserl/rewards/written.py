"""What `score` reads and what it writes: every answer with all its scores, its reward and its verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import fuserl
from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.inputs import content_digest
from fuserl.records.manifest import read_manifest
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup
from fuserl.records.store import replace_groups
from fuserl.rewards.asking import Asked
from fuserl.rewards.calibrate import Calibration
from fuserl.rewards.combine import Combination
from fuserl.rewards.findings import Earlier, Entries, entries_of, place_of, rows_of, with_scores
from fuserl.rewards.tally import COMBINED, Tally
from fuserl.terminal import bar, say, say_table

LISTED = 20  # rows left out that the manifest names


class Input:
    """The data set that is scored; it is read several times, and must not change meanwhile."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.settings, self.path = data, Path(data["path"]).expanduser()
        self.num_groups: int | None = None  # known after the first reading

    def groups(self, report: ReadReport | None = None) -> Iterator[PromptGroup]:
        """All of it, empty answers too.

        Raises:
            FuserlError: a row is bad, or there is no data.
        """
        data = self.settings
        groups = read_groups(
            data["path"],
            split=data["split"],
            form=data["format"],
            on_bad_row=data["on_bad_row"],
            columns=data["columns"],
            needs=Needs(text=False),
            report=report,
        )
        return islice(groups, data["limit"])

    def told(self) -> dict[str, Any]:
        """What its own manifest says beside counts, empty where it has none."""
        return read_manifest(self.path).extra if (self.path / "manifest.json").exists() else {}

    @cached_property
    def _digest(self) -> str:
        return content_digest(self.settings["path"], self.settings["split"])

    def digest(self) -> str:
        """Of its content, as it was when it was first asked for."""
        return self._digest


@dataclass(frozen=True)
class Output:
    """What goes into the folder."""

    folder: Path
    asked: Sequence[Asked]
    combination: Combination
    carried: frozenset[str]  # scorers whose scores are taken over from the folder's own data set
    present: frozenset[str]  # scorers whose scores the input brings


def write(data: Input, output: Output, given: Mapping[str, Any], report: ReadReport) -> None:
    """Lay scores beside responses, combine, put the data set in its place, and tell what came out.

    Raises:
        FuserlError: the input has changed since it was scored, or the folder cannot be written.
    """
    calibration, tally = _calibration(data, output), Tally()
    earlier = Earlier(output.folder, output.carried)
    extra = _manifest(data, output, given, report)

    def finished() -> Iterator[PromptGroup]:
        with bar("writing", lambda: data.num_groups) as told:
            for number, (group, found) in enumerate(_scored(data, output, earlier)):
                finals = output.combination(rows_of(group, found), calibration)
                scored = with_scores(group, found, finals)
                tally.add(scored, found)
                told(number)
                yield scored
        extra["calibration"] = calibration.plain()  # the manifest is written after the last group
        extra["scores"], extra["reasons"] = tally.plain(), tally.reasons_plain()

    replace_groups(finished(), output.folder, manifest_extra=extra)
    shown = [one.name for one in output.asked] + ([] if len(output.asked) == 1 else [COMBINED])
    say_table(tally.table(shown))
    for line in tally.reasons_told(shown):
        say(line)
    if gone := earlier.unasked():
        say(f"{gone:,} prompts of the folder's earlier data set are not in the data any more")


def _calibration(data: Input, output: Output) -> Calibration:
    """The moments of what the combination standardises, by a reading of their own."""
    calibration, combination = Calibration(), output.combination
    if not combination.standardises():
        return calibration
    for group, found in _scored(data, output, Earlier(output.folder, output.carried)):
        for row in rows_of(group, found):
            for name in combination.reads() & row.findings.keys():
                if (reward := row.findings[name].reward) is not None:
                    calibration.add(name, row.domain, row.source, reward)
    return calibration


def _scored(data: Input, output: Output, earlier: Earlier) -> Iterator[tuple[PromptGroup, list[Entries]]]:
    """Every group, with the scores of each response: this run's, else the input's, else those taken over."""
    ours = {one.name for one in output.asked}
    for group in data.groups():
        carried = earlier.of(group)
        found = []
        for response in group.responses:
            brought = entries_of(response, place_of(group, response))
            found.append({n: e for n, e in (carried.get(response.text, {}) | brought).items() if n not in ours})
        for one in output.asked:
            if one.applies(group):
                for entries, item in zip(found, one.items(group), strict=True):
                    if (entry := one.entry(item.key)) is not None:
                        entries[one.name] = entry
                    elif item.key not in one.failed and not one.gave_up:
                        raise FuserlError(
                            f"`{one.name}` was not asked about an answer: the data changed meanwhile",
                            where=place_of(group, item.response),
                            hint="run the same command again; what was scored is kept",
                        )
        yield group, found


def is_written(data: Input, output: Output, given: Mapping[str, Any]) -> bool:
    """Whether the folder's data set was made from just this."""
    manifest = output.folder / "manifest.json"
    return manifest.exists() and read_manifest(output.folder).extra.get("made_from") == _state(data, output, given)


def _state(data: Input, output: Output, given: Mapping[str, Any]) -> str:
    """Digest of all that decides the data set beside what scorers found."""
    scorers = {one.name: [one.identity, sorted(one.domains or ["*"])] for one in output.asked}
    content = [data.digest(), dict(data.settings), scorers, given["combine"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _manifest(data: Input, output: Output, given: Mapping[str, Any], report: ReadReport) -> dict[str, Any]:
    """What the data set says about itself: what it came from, who scored it how, what was left out."""
    told = data.told()
    before = read_manifest(output.folder).extra if output.carried else {}
    scorers = {name: {} for name in sorted(output.present)}
    scorers |= {name: entry for name, entry in (before.get("scorers") or {}).items() if name in output.carried}
    scorers |= told.get("scorers") or {}
    scorers |= {
        one.name: {"identity": one.identity, "settings": one.settings, "failures": dict(one.failures)}
        for one in output.asked
    }
    missing = any(one.failures for one in output.asked)
    return told | {
        "verb": "score",
        "fuserl": fuserl.__version__,
        "made_from": None if missing else _state(data, output, given),
        "scorers": scorers,
        "combine": given["combine"],
        "scored_from": {"path": str(data.settings["path"]), "split": data.settings["split"], "digest": data.digest()},
        "left_out": {"count": len(report.skipped), "first": report.skipped[:LISTED]},
    }

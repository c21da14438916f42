"""The end of `generate`: the data set is written where it is whole; counts, warnings and failures are told."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fuserl
from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport
from fuserl.records.journal import Journal
from fuserl.records.manifest import read_manifest
from fuserl.records.schema import PromptGroup
from fuserl.records.store import replace_groups
from fuserl.sources.asked import Asked
from fuserl.sources.asking import Outcome
from fuserl.sources.folder import Folder
from fuserl.sources.grouped import grouped
from fuserl.sources.prompts import Prompts
from fuserl.sources.survey import Survey
from fuserl.sources.tally import Tally
from fuserl.terminal import say, say_table

TOLD = 5  # kinds of failure that are told
LISTED = 20  # bad rows that the manifest lists


@dataclass(frozen=True)
class Made:
    """What a data set is made from."""

    folder: Folder
    prompts: Prompts
    survey: Survey
    report: ReadReport
    asked: Mapping[str, Asked]  # all sources, those of earlier commands too
    journals: Mapping[str, Journal]

    def state(self) -> str:
        """Digest of all that decides the data set: prompts, what was asked, how many answers there are."""
        sources = {name: [one.source.plain(), one.seed, len(self.journals[name])] for name, one in self.asked.items()}
        content = json.dumps([self.survey.digest, sources], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    def is_written(self) -> bool:
        """Whether the folder's data set was made from just this."""
        manifest = self.folder.manifest
        return manifest.exists() and read_manifest(self.folder.path).extra.get("made_from") == self.state()


def finish(made: Made, outcomes: Mapping[str, Outcome], on_failure: str) -> None:
    """Write the data set, or say why not.

    Args:
        on_failure: `error`: no data set is written while an answer is missing; `leave_out`: what there is.

    Raises:
        FuserlError: answers are missing, or no prompt has any.
    """
    missing = made.survey.open - sum(outcome.answers for outcome in outcomes.values())
    tally = Tally(made.asked)
    groups = tally.watch(grouped(made.prompts.groups(), made.asked, made.journals))
    whole = not missing or on_failure == "leave_out"
    if whole:
        extra: dict[str, Any] = {"verb": "generate"}
        manifest = replace_groups(
            _telling(groups, extra, made, tally, outcomes), made.folder.path, manifest_extra=extra
        )
        _say_change(manifest.groups, manifest.responses, made, tally)
    else:
        for _ in groups:
            pass
    say_table(tally.table())
    for warning in tally.warnings():
        say(warning)
    if missing:
        _tell_missing(missing, made, outcomes, whole)


def _telling(
    groups: Iterator[PromptGroup],
    extra: dict[str, Any],
    made: Made,
    tally: Tally,
    outcomes: Mapping[str, Outcome],
) -> Iterator[PromptGroup]:
    """Pass groups on; when the last has passed, `extra` says what the manifest should."""
    yield from groups
    if tally.left_out == made.survey.prompts:
        raise FuserlError(
            "no prompt has an answer, so there is no data set",
            where=str(made.folder.path),
            hint=f"{made.folder.failures} lists what failed",
        )
    counts = tally.plain()
    extra |= {
        "fuserl": fuserl.__version__,
        "made_from": made.state(),
        "prompts": {
            "path": made.prompts.path,
            "read": made.survey.prompts,
            "repeated": made.survey.repeated,
            "without_answer": tally.left_out,
            "bad_rows": len(made.report.skipped),
            "bad_rows_listed": made.report.skipped[:LISTED],
        },
        "sources": {
            name: {"seed": one.seed, "settings": one.source.plain(), "counts": counts[name]}
            for name, one in made.asked.items()
        },
        "last_command": {name: outcome.plain() for name, outcome in outcomes.items()},
    }


def _say_change(groups: int, responses: int, made: Made, tally: Tally) -> None:
    say(f"{groups:,} groups with {responses:,} responses of {len(made.asked)} sources: {made.folder.path}")
    if tally.left_out:
        say(f"warning: {tally.left_out:,} prompts are left out, as no source answered them")


def _tell_missing(missing: int, made: Made, outcomes: Mapping[str, Outcome], written: bool) -> None:
    """What failed, most frequent first; an error where the data set is not written."""
    reasons: Counter[str] = Counter()
    for outcome in outcomes.values():
        reasons.update(outcome.reasons)
    for reason, times in reasons.most_common(TOLD):
        say(f"{times:,} x {reason}")
    lasting = sum(outcome.lasting for outcome in outcomes.values())
    for name in (name for name, outcome in outcomes.items() if outcome.gave_up):
        say(f"`{name}` was asked no more after `give_up` failures in a row")
    wanted = sum(made.survey.wanted.values())
    what = f"{missing:,} of {wanted:,} requests got no answer"
    if written:
        say(f"warning: {what}; {made.folder.failures} lists them")
        return
    again = "run the same command again: only these are asked"
    if lasting:
        again += f"; {lasting:,} would fail again, write the data set without such with `on_failure=leave_out`"
    raise FuserlError(what, where=str(made.folder.failures), hint=again)

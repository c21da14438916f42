"""What scorers found, where it is kept: `extra["scores"]` of a response, one entry a scorer, side by side."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.schema import VERDICTS, PromptGroup, Response
from fuserl.records.store import iter_groups
from fuserl.rewards.combine import Final, Finding, Row

FIELD = "scores"  # of `Response.extra`
GIVEN = "given"  # the scorer under which a reward that came with the data is kept

Entry = Mapping[str, Any]  # {"reward", "verdict", "detail"}
Entries = dict[str, Entry]  # by scorer


def entries_of(response: Response, where: str) -> Entries:
    """The scores that a response carries; a reward or verdict without scores is `given`.

    Raises:
        FuserlError: the field of that name is somebody else's.
    """
    present = response.extra.get(FIELD)
    if present is None:
        had = response.reward is not None or response.verdict is not None
        return {GIVEN: {"reward": response.reward, "verdict": response.verdict, "detail": {}}} if had else {}
    if not isinstance(present, Mapping) or not all(_is_entry(entry) for entry in present.values()):
        raise FuserlError(
            f"the field `{FIELD}` of a response holds something else than scores",
            where=where,
            hint="give it another name in the data: fuserl keeps each scorer's finding there",
        )
    return dict(present)


def _is_entry(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    reward = value.get("reward")
    number = isinstance(reward, int | float) and not isinstance(reward, bool) and math.isfinite(reward)
    return (reward is None or number) and (value.get("verdict") is None or value.get("verdict") in VERDICTS)


def finding(entry: Entry) -> Finding:
    """What of an entry is combined."""
    reward = entry.get("reward")
    return Finding(None if reward is None else float(reward), entry.get("verdict"))


def rows_of(group: PromptGroup, found: list[Entries]) -> list[Row]:
    """A group as combinations see it."""
    return [
        Row(place_of(group, response), group.domain, response.source, {name: finding(e) for name, e in entries.items()})
        for response, entries in zip(group.responses, found, strict=True)
    ]


def place_of(group: PromptGroup, response: Response) -> str:
    """A response, for messages."""
    return f"prompt `{group.id}`, source `{response.source}`, sample {response.sample}"


def with_scores(group: PromptGroup, found: list[Entries], finals: list[Final]) -> PromptGroup:
    """The group with every scorer's finding, and the reward and verdict that came of them."""
    responses = tuple(
        replace(
            response,
            reward=final.reward,
            verdict=final.verdict,
            extra={key: value for key, value in response.extra.items() if key != FIELD}
            | ({FIELD: dict(sorted(entries.items()))} if entries else {}),
        )
        for response, entries, final in zip(group.responses, found, finals, strict=True)
    )
    return replace(group, responses=responses)


def _name_of(group: PromptGroup) -> bytes:
    """Of a group by its id, its prompt and its reference."""
    asked = [[message.role, message.content] for message in group.prompt]
    return hashlib.sha256(json.dumps([group.id, asked, group.reference]).encode()).digest()[:16]


class Earlier:
    """Scores that a folder's data set holds already, found by prompt, reference and text of the response.

    It is read alongside the input. As long as both have one order, one group is in memory; groups that the input
    names later are kept until it does.
    """

    def __init__(self, folder: Path | None, scorers: frozenset[str]) -> None:
        self.scorers = scorers
        self._ahead: set[bytes] = set()  # groups not read yet
        self._waiting: dict[bytes, dict[str, Entries]] = {}
        self._stream: Iterator[PromptGroup] = iter(())
        if folder is not None and scorers:
            self._ahead.update(_name_of(group) for group in iter_groups(folder))
            self._stream = iter_groups(folder)

    def of(self, group: PromptGroup) -> dict[str, Entries]:
        """Text of a response -> its scores by the scorers that are carried over. A group is asked for once."""
        name = _name_of(group)
        while name in self._ahead:
            met = next(self._stream)
            self._ahead.discard(_name_of(met))
            self._waiting[_name_of(met)] = {r.text: self._entries(met, r) for r in met.responses}
        return self._waiting.pop(name, {})

    def unasked(self) -> int:
        """Groups that the input has not named so far: their scores are not carried over."""
        return len(self._ahead) + len(self._waiting)

    def _entries(self, group: PromptGroup, response: Response) -> Entries:
        entries = entries_of(response, place_of(group, response))
        return {name: entry for name, entry in entries.items() if name in self.scorers}

"""One scorer at work: what it is asked, what is known already, what is kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from fuserl.errors import FuserlError
from fuserl.records.journal import Journal
from fuserl.records.schema import VERDICTS, PromptGroup
from fuserl.rewards.findings import Entry, place_of
from fuserl.rewards.made import made
from fuserl.rewards.protocol import Item, Score, Scorer
from fuserl.sources.protocol import Failure
from fuserl.terminal import bar

ENCODE = json.JSONEncoder(sort_keys=True, default=str).encode
KINDS = 100  # kinds of failures that are counted apart


@dataclass
class Asked:
    """A scorer of this run with its journal: equal answers to equal prompts are scored once, and never again.

    A score is found again under the digest of the scorer's identity, prompt, reference, text and what else of the group
    decides it. Another setting of the scorer, another key.
    """

    name: str
    scorer: Scorer
    domains: Collection[str] | None  # it applies to these; None: to all
    journal: Journal
    settings: Mapping[str, Any]
    identity: Mapping[str, Any] = field(init=False)
    failures: Counter[str] = field(default_factory=Counter)  # what went wrong in this run, numbers left out
    failed: set[str] = field(default_factory=set)  # keys
    lasting: int = 0  # failures that a repetition will not mend
    gave_up: bool = False  # too many failures in a row: not everything was asked

    def __post_init__(self) -> None:
        kind = type(self.scorer)
        self.identity = {"scorer": f"{kind.__module__}.{kind.__qualname__}", **self.scorer.identity()}
        self._digest = _digest(self.identity)
        self._writing = Lock()  # a scorer may draw its items in a thread of its own

    def applies(self, group: PromptGroup) -> bool:
        """Whether this scorer is asked about the group at all."""
        return self.domains is None or group.domain in self.domains

    def items(self, group: PromptGroup) -> list[Item]:
        """The group's responses, each with the key of its score."""
        asked = _digest([[[message.role, message.content] for message in group.prompt], group.reference])
        items = []
        for response in group.responses:
            bare = Item("", group, response)
            key = _digest([self._digest, asked, response.text, self.scorer.context(bare)])
            items.append(Item(key, group, response))
        return items

    def entry(self, key: str) -> Entry | None:
        """The score of a key, as it is kept beside a response; None where there is none yet."""
        record = self.journal.get(key)
        return None if record is None else {name: record[name] for name in ("reward", "verdict", "detail")}

    def run(self, groups: Iterable[PromptGroup], to_do: int, failed: TextIO, give_up: int | None) -> None:
        """Have everything scored that is not known yet; each score is kept as it comes.

        Args:
            to_do: responses without a score, equal ones counted each, for the bar.
            failed: gets a JSON line a failure.
            give_up: failures in a row after which no more is asked; None: never.

        Raises:
            FuserlError: the scorer cannot work; or it answered something that is no score.
        """
        in_flight: dict[str, tuple[str, str]] = {}  # key -> prompt id, where
        in_a_row = 0
        with bar(f"scoring {self.name}", lambda: to_do) as told:
            for number, found in enumerate(self.scorer.score(self._unknown(groups, in_flight)), 1):
                prompt_id, where = in_flight.pop(found.key, (None, ""))
                if prompt_id is None:
                    raise FuserlError(
                        f"the scorer `{self.name}` answered what it was not asked, or twice", where=f"key `{found.key}`"
                    )
                if isinstance(found, Score):
                    self._keep(found, where)
                    in_a_row = 0
                else:
                    in_a_row += 1
                    self._note(found, prompt_id, where, failed)
                    if give_up is not None and in_a_row >= give_up:
                        self.gave_up = True
                        return
                told(number, f"{self.failures.total():,} failed" if self.failures else "")
        if in_flight:
            raise FuserlError(
                f"the scorer `{self.name}` left {len(in_flight)} answers without a score",
                where=next(iter(in_flight.values()))[1],
                hint="a scorer answers each item with a score or a failure; what it scored is kept",
            )

    def _unknown(self, groups: Iterable[PromptGroup], in_flight: dict[str, tuple[str, str]]) -> Iterator[Item]:
        """What has no score, is not being scored, and has not failed in this run."""
        for group in groups:
            for item in self.items(group) if self.applies(group) else ():
                with self._writing:
                    known = item.key in self.journal
                if not (known or item.key in in_flight or item.key in self.failed):
                    in_flight[item.key] = group.id, place_of(group, item.response)
                    yield item

    def _keep(self, found: Score, where: str) -> None:
        if (found.reward is not None and not math.isfinite(found.reward)) or found.verdict not in (None, *VERDICTS):
            raise FuserlError(
                f"the scorer `{self.name}` gave the reward {found.reward} and the verdict {found.verdict}",
                where=where,
                hint="a reward is finite or null, a verdict right, wrong, unknown or null; what was scored is kept",
            )
        today = datetime.now(UTC).date().isoformat()
        record = {"reward": found.reward, "verdict": found.verdict, "detail": dict(found.detail), "scored": today}
        with self._writing:
            self.journal.add(found.key, record)

    def _note(self, failure: Failure, prompt_id: str, where: str, failed: TextIO) -> None:
        named = {"scorer": self.name, "prompt_id": prompt_id, "where": where}
        failed.write(json.dumps(named | {"what": failure.what, "passing": failure.passing}) + "\n")
        self.failed.add(failure.key)
        self.lasting += not failure.passing
        kind = re.sub(r"\d+", "N", failure.what)
        self.failures[kind if kind in self.failures or len(self.failures) < KINDS else "other"] += 1


def asked_of(name: str, node: Mapping[str, Any], folder: Path, cleaning: ExitStack) -> Asked:
    """A scorer of the configuration with its journal in the folder, both closed with `cleaning`.

    Raises:
        FuserlError: there is no such scorer, it does not take these settings, or its journal cannot be opened.
    """
    domains = node.get("domains")
    settings = {key: value for key, value in node.items() if key != "domains"}
    domains = [domains] if isinstance(domains, str) else domains
    if domains is not None and not isinstance(domains, list):
        raise FuserlError(
            f"`domains` is {domains!r}",
            where=f"`rewards.{name}.domains`",
            hint="it is a list of domains, or null for all",
        )
    scorer = made({"name": name, **settings}, f"rewards.{name}")
    if not callable(getattr(scorer, "score", None)) or not callable(getattr(scorer, "close", None)):
        raise FuserlError(
            f"this is no scorer but a {type(scorer).__name__}",
            where=f"`rewards.{name}`",
            hint="name one of conf/reward, or a class of your own as `_target_` (rewards/protocol.py)",
        )
    cleaning.callback(scorer.close)
    journal = cleaning.enter_context(Journal(folder / "journal" / f"{name}.jsonl"))
    return Asked(name, scorer, domains, journal, node)


def _digest(content: Any) -> str:
    return hashlib.sha256(ENCODE(content).encode()).hexdigest()[:32]

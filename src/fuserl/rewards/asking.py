"""One scorer at work: what it is asked, what is known already, what is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.journal import Journal
from fuserl.records.schema import VERDICTS, PromptGroup
from fuserl.rewards.findings import Entry, place_of
from fuserl.rewards.made import made
from fuserl.rewards.protocol import Item, Score, Scorer
from fuserl.sources.protocol import Failure
from fuserl.terminal import bar

TOLD = 5  # kinds of failures that are told, the most frequent first


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
    failures: Counter[str] = field(default_factory=Counter)  # what went wrong -> how often, in this run
    failed: set[str] = field(default_factory=set)  # keys

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

    def run(self, groups: Iterable[PromptGroup], to_do: int) -> None:
        """Have everything scored that is not known yet; each score is kept as it comes.

        Args:
            to_do: responses without a score, equal ones counted each, for the bar.

        Raises:
            FuserlError: the scorer cannot work; or it answered something that is no score.
        """
        in_flight: dict[str, str] = {}  # key -> where, for messages
        done = 0

        def unknown() -> Iterator[Item]:
            nonlocal done
            for group in groups:
                for item in self.items(group) if self.applies(group) else ():
                    with self._writing:
                        known = item.key in self.journal
                    if known:
                        continue
                    if item.key in in_flight or item.key in self.failed:
                        done += 1
                        continue
                    in_flight[item.key] = place_of(item.group, item.response)
                    yield item

        with bar(f"scoring {self.name}", lambda: to_do) as told:
            for found in self.scorer.score(unknown()):
                self._keep(found, in_flight)
                done += 1
                told(done, f"{self.failures.total()} failed" if self.failures else "")
        if in_flight:
            raise FuserlError(
                f"the scorer `{self.name}` left {len(in_flight)} answers without a score",
                where=next(iter(in_flight.values())),
                hint="a scorer answers each item with a score or a failure; what it scored is kept",
            )

    def _keep(self, found: Score | Failure, in_flight: dict[str, str]) -> None:
        where = in_flight.pop(found.key, None)
        if where is None:
            raise FuserlError(
                f"the scorer `{self.name}` answered what it was not asked, or twice", where=f"key `{found.key}`"
            )
        if isinstance(found, Failure):
            self.failures[found.what] += 1
            self.failed.add(found.key)
            return
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

    def told(self) -> list[str]:
        """Lines about what failed."""
        lines = [f"{count} x {what}" for what, count in self.failures.most_common(TOLD)]
        rest = self.failures.total() - sum(count for _, count in self.failures.most_common(TOLD))
        return [f"`{self.name}` failed: {line}" for line in [*lines, *([f"{rest} x others"] if rest else [])]]


def asked_of(name: str, node: Mapping[str, Any], folder: Path, cleaning: ExitStack) -> Asked:
    """A scorer of the configuration with its journal in the folder, both closed with `cleaning`.

    Raises:
        FuserlError: there is no such scorer, it does not take these settings, or its journal cannot be opened.
    """
    domains = node.get("domains")
    settings = {key: value for key, value in node.items() if key != "domains"}
    scorer = made({"name": name, **settings}, f"rewards.{name}")
    cleaning.callback(scorer.close)
    journal = cleaning.enter_context(Journal(folder / "journal" / f"{name}.jsonl"))
    return Asked(name, scorer, [domains] if isinstance(domains, str) else domains, journal, node)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

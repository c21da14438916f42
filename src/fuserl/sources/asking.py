"""Asking one source for all that its journal lacks."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from fuserl.records.journal import Journal
from fuserl.records.schema import PromptGroup
from fuserl.sources.asked import Asked
from fuserl.sources.protocol import Answer, Engine, Failure, Request
from fuserl.sources.resumed import Resumed

KINDS = 100  # kinds of failure that are counted apart


@dataclass
class Outcome:
    """What asking one source came to, in this command."""

    answers: int = 0
    tokens: int = 0  # of the answers
    cost: float = 0.0  # as far as the engine knows it
    failures: int = 0
    lasting: int = 0  # of these, failures that a repetition will not mend
    reasons: Counter[str] = field(default_factory=Counter)  # what failed, numbers left out -> how often
    gave_up: bool = False
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0  # from there to the last of these

    def add(self, result: Answer | Failure) -> None:
        """Count one."""
        self.seconds = time.monotonic() - self.started
        if isinstance(result, Answer):
            self.answers += 1
            self.tokens += result.response_tokens
            cost = result.extra.get("cost")
            self.cost += cost if isinstance(cost, int | float) else 0.0
            return
        self.failures += 1
        self.lasting += not result.passing
        kind = re.sub(r"\d+", "N", result.what)
        self.reasons[kind if kind in self.reasons or len(self.reasons) < KINDS else "other"] += 1

    def plain(self) -> dict[str, Any]:
        """For the manifest."""
        rate = round(self.tokens / max(self.seconds, 1e-9), 1)
        counted = {"answers": self.answers, "failures": self.failures, "seconds": round(self.seconds, 3)}
        return counted | {"tokens_per_second": rate, "reasons": dict(self.reasons)}

    def beside(self) -> str:
        """For the bar."""
        rate = f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"
        failed = f", {self.failures:,} failed" if self.failures else ""
        return rate + (f", cost {self.cost:,.4g}" if self.cost else "") + failed


def ask(
    asked: Asked,
    engine: Engine,
    journal: Journal,
    prompts: Iterable[PromptGroup],
    failed: TextIO,
    *,
    give_up: int | None,
    told: Callable[[Outcome], None],
) -> Outcome:
    """Ask for every sample of every prompt that the journal lacks, and keep what comes.

    Args:
        prompts: read as the engine draws requests.
        failed: gets a JSON line a failure.
        give_up: failures in a row after which no more is asked; None: never.
    """
    outcome, where, in_a_row = Outcome(), {}, 0
    for result in Resumed(engine, journal).answer(_unanswered(asked, prompts, journal, where)):
        prompt_id, sample = where.pop(result.key)
        outcome.add(result)
        in_a_row = in_a_row + 1 if isinstance(result, Failure) else 0
        if isinstance(result, Failure):
            named = {"source": asked.source.name, "prompt_id": prompt_id, "sample": sample}
            failed.write(json.dumps(named | {"what": result.what, "passing": result.passing}) + "\n")
            if give_up is not None and in_a_row >= give_up:
                outcome.gave_up = True
                break
        told(outcome)
    return outcome


def _unanswered(
    asked: Asked, prompts: Iterable[PromptGroup], journal: Journal, where: dict[str, tuple[str, int]]
) -> Iterator[Request]:
    """Requests without an answer; `where` knows prompt and sample of those under way."""
    for group in prompts:
        for sample, request in enumerate(asked.requests(group)):
            if request.key not in journal:
                where[request.key] = group.id, sample
                yield request

"""Asking a judge: questions to an engine, the one thing that is read in its answer, another attempt where it is not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.rewards.fences import CONTROL, defused, filled
from fuserl.rewards.protocol import Score
from fuserl.sources.protocol import Answer, Engine, Failure, Request, Sampling
from fuserl.sources.source import Source, source_of

SAID = 300  # characters of a judge's answer that are kept, its last ones
MARK = re.compile(r"\[\[([^\[\]\n]{1,20})\]\]")


@dataclass(frozen=True, slots=True)
class Question:
    """One thing a judge is asked."""

    key: str  # names it by content; decides the seed
    text: str
    system: str | None = None  # a turn before it; None: the source's, if it has one


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question: what was read in the answer, or that nothing could be, or that there was no answer."""

    value: Any = None  # None: unreadable, on every attempt
    said: str = ""  # the end of the last answer
    attempts: int = 0
    failure: Failure | None = None


@dataclass(frozen=True)
class Judging:
    """A judge model and how it is asked.

    Raises:
        FuserlError: a setting is wrong.
    """

    name: str  # of the scorer, for messages
    engine: Callable[[Source], Engine]
    source: Source
    template: str
    attempts: int  # of one question
    again_temperature: float  # of every attempt but the first: a greedy judge would only repeat itself
    after: str | None  # the verdict stands behind the last of these texts, `</think>` say; None: anywhere

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise FuserlError(
                f"a judge cannot be asked {self.attempts} times",
                where=f"`rewards.{self.name}.attempts`",
                hint="1 or more",
            )

    def identity(self) -> Mapping[str, Any]:
        """Model, sampling, template and how its answer is read; not the engine, nor where it runs."""
        return {
            "judge": self.source.with_content().identity(),
            "sampling": self.source.plain()["sampling"],
            "template": self.template_hash,
            "defused": CONTROL.pattern,
            "attempts": [self.attempts, self.again_temperature],
            "after": self.after,
        }

    @property
    def template_hash(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True, default=str).encode()).hexdigest()

    def question(self, key: str, texts: Mapping[str, str]) -> Question:
        """The template with texts of others in its blanks."""
        return Question(key, filled(self.template, {name: defused(text) for name, text in texts.items()}))

    def detail(self) -> dict[str, Any]:
        """Who judged, by what, when: kept with every score."""
        today = datetime.now(UTC).date().isoformat()
        return {"judge": self.source.path, "template": self.template_hash, "date": today}

    def rated(self, key: str, reply: Reply, low: float, high: float) -> Score | Failure:
        """A rating from `low` to `high` as a score: unknown where there is none, a failure where nobody answered."""
        if reply.failure is not None:
            return Failure(key, reply.failure.what, reply.failure.passing, reply.failure.wait)
        detail = self.detail() | {"attempts": reply.attempts, "said": reply.said}
        if reply.value is None:
            why = f"no single rating from {low:g} to {high:g} in what the judge said"
            return Score(key, None, "unknown", {"why": why} | detail)
        return Score(key, reply.value, None, detail)

    @cached_property
    def _opened(self) -> Engine:
        """The engine, started when it is first asked."""
        return self.engine(self.source)

    def close(self) -> None:
        """Close the engine; it starts again where it is asked again."""
        opened = self.__dict__.pop("_opened", None)
        if opened is not None:
            opened.close()

    def replies(self, questions: Iterable[Question], read: Callable[[str], Any]) -> Iterator[tuple[Question, Reply]]:
        """A reply a question, as they come; one that cannot be read is asked again, with another seed.

        Args:
            read: the judge's words -> what they say, None where they do not say it clearly.
        """
        stream, again = iter(questions), deque[tuple[Question, int]]()
        asked: dict[str, tuple[Question, int]] = {}

        def requests() -> Iterator[Request]:
            """Drawn while the engine has room: what is asked again comes first."""
            while True:
                question, attempt = again.popleft() if again else (next(stream, None), 0)
                if question is None:
                    return
                request = self._request(question, attempt)
                asked[request.key] = question, attempt
                yield request

        while True:
            for result in self._opened.answer(requests()):
                question, attempt = asked.pop(result.key)
                if isinstance(result, Failure):
                    yield question, Reply(failure=result)
                    continue
                value = self._read(result, read)
                if value is None and attempt + 1 < self.attempts:
                    again.append((question, attempt + 1))
                    continue
                yield question, Reply(value, result.text[-SAID:], attempt + 1)
            if not again:
                return

    def _request(self, question: Question, attempt: int) -> Request:
        content = hashlib.sha256(f"{self._digest} {question.key} {attempt}".encode())
        sampling: Sampling = self.source.sampling
        if attempt:
            sampling = replace(sampling, temperature=max(sampling.temperature, self.again_temperature))
        before = question.system or self.source.system
        system = [Message("system", before)] if before else []
        seed = int.from_bytes(content.digest()[:8], "big") % 2**31
        return Request(content.hexdigest()[:32], (*system, Message("user", question.text)), sampling, seed)

    def _read(self, answer: Answer, read: Callable[[str], Any]) -> Any:
        """What an answer says; an answer that was cut says nothing, whatever stands in it."""
        if answer.finish_reason != "stop":
            return None
        if self.after is None:
            return read(answer.text)
        _, found, tail = answer.text.rpartition(self.after)
        return read(tail) if found else None


def judging_of(
    name: str,
    *,
    engine: Callable[[Source], Engine],
    source: Mapping[str, Any],
    template: str,
    attempts: int,
    again_temperature: float,
    after: str | None,
) -> Judging:
    """From the settings of a judge.

    Raises:
        FuserlError: the source or another setting is wrong.
    """
    judge = source_of(f"{name}", {"name": name} | dict(source))
    return Judging(name, engine, judge, template, attempts, again_temperature, after)


def require_range(name: str, low: float, high: float) -> None:
    """Raises: FuserlError: the scorer's ratings cannot lie between these."""
    if not low < high:
        raise FuserlError(
            f"a rating cannot lie between {low} and {high}", where=f"`rewards.{name}.low`", hint="give low < high"
        )


def the_mark(words: str) -> str | None:
    """What stands between double brackets, where that is there exactly once.

    >>> the_mark("Short, and right. Rating: [[8]]"), the_mark("[[8]] or [[9]]"), the_mark("eight")
    ('8', None, None)
    """
    found = MARK.findall(words)
    return found[0].strip() if len(found) == 1 else None

"""The scorer `judge`: a language model rates answers one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fuserl.rewards.fences import blanks_of, told
from fuserl.rewards.judging import Question, judging_of, require_range, the_mark
from fuserl.rewards.protocol import Item, Score
from fuserl.sources.protocol import Engine, Failure
from fuserl.sources.source import Source

NUMBER = re.compile(r"-?\d+(\.\d+)?")


class Judge:
    """One rating an answer, `[[7]]` in the judge's words, exactly once and in its range; else the score is unknown.

    Args:
        engine: source -> engine, one of conf/engine/.
        source: the judge model, as in conf/source/.
        template: with the blanks question, answer and fence, and perhaps reference.
        low, high: of a rating, both allowed.

    Raises:
        FuserlError: a setting is wrong. The engine starts when it is needed.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Callable[[Source], Engine],
        source: Mapping[str, Any],
        template: str,
        low: float,
        high: float,
        attempts: int,
        again_temperature: float,
        after: str | None,
    ) -> None:
        require_range(name, low, high)
        self.blanks = blanks_of(
            template, needed=("question", "answer"), known=("reference",), where=f"`rewards.{name}.template`"
        )
        self.name, self.low, self.high = name, low, high
        self.judging = judging_of(
            name,
            engine=engine,
            source=source,
            template=template,
            attempts=attempts,
            again_temperature=again_temperature,
            after=after,
        )

    def identity(self) -> Mapping[str, Any]:
        """The judge, what it is asked, and its range."""
        return {**self.judging.identity(), "range": [self.low, self.high]}

    def context(self, item: Item) -> None:
        """Nothing else of the group."""

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Ratings as they come."""
        unasked: list[Score] = []

        def questions() -> Iterator[Question]:
            """One an item; what the judge is not asked is set aside."""
            for item in items:
                if why := self._why_not(item):
                    unasked.append(Score(item.key, None, "unknown", {"why": why}))
                    continue
                yield self.judging.question(item.key, self._texts(item))

        for question, reply in self.judging.replies(questions(), self._rating):
            yield self.judging.rated(question.key, reply, self.low, self.high)
            while unasked:
                yield unasked.pop()
        yield from unasked

    def close(self) -> None:
        """Close the engine."""
        self.judging.close()

    def _why_not(self, item: Item) -> str:
        """Why the judge is not asked; empty where it is."""
        if not item.response.text.strip():
            return "the answer is empty"
        if "reference" in self.blanks and item.group.reference is None:
            return "the group has no reference"
        return ""

    def _texts(self, item: Item) -> dict[str, str]:
        texts = {"question": told(item.group.prompt), "answer": item.response.text}
        return texts | ({"reference": item.group.reference or ""} if "reference" in self.blanks else {})

    def _rating(self, words: str) -> float | None:
        mark = the_mark(words)
        if mark is None or not NUMBER.fullmatch(mark):
            return None
        return float(mark) if self.low <= float(mark) <= self.high else None

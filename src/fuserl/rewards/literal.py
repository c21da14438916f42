"""Grading Python literals: what does this program print, which value does it return?"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fuserl.records.schema import PromptGroup
from fuserl.rewards.answers import Answer
from fuserl.rewards.described import described, direct
from fuserl.rewards.protocol import Item, Score

QUOTES = "'\""
NONE = object()  # no literal


class LiteralScorer:
    """`right` if the answer equals the group's, as Python literals, or as texts without outer quotes.

    Args:
        answer: where in a response the answer stands; None where there is none.
        gold: a group's right answer; None where it has none.
    """

    def __init__(self, *, answer: Answer, gold: Callable[[PromptGroup], str | None], name: str = "literal") -> None:
        self.name, self.answer, self.gold = name, direct(answer), direct(gold)

    def identity(self) -> Mapping[str, Any]:
        """How answers are found."""
        return {"answer": described(self.answer), "gold": described(self.gold)}

    def context(self, item: Item) -> str | None:
        """The right answer, which may stand in any field."""
        return self.gold(item.group)

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        """One after the other: nothing is run."""
        return (self._one(item) for item in items)

    def close(self) -> None:
        """There is nothing to give back."""

    def _one(self, item: Item) -> Score:
        gold = self.gold(item.group)
        if gold is None:
            return Score(item.key, None, "unknown", {"why": "the group has no right answer"})
        answer = self.answer(item.response.text)
        if answer is None:
            return Score(item.key, 0.0, "wrong", {"why": "no answer found"})
        same = equal(gold, answer)
        return Score(item.key, float(same), "right" if same else "wrong", {"answer": answer[:200]})


def equal(gold: str, answer: str) -> bool:
    """Equal values, or equal texts.

    >>> equal("[1, 2]", "[1,2]"), equal("'a'", '"a"'), equal("'a'", "a"), equal("'1'", "1"), equal("1", "2")
    (True, True, True, True, False)
    """
    gold, answer = gold.strip(), answer.strip()
    if gold.strip(QUOTES) == answer.strip(QUOTES):
        return True
    right, said = _value(gold), _value(answer)
    return right is not NONE and bool(right == (answer.strip(QUOTES) if said is NONE else said))


def _value(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return NONE

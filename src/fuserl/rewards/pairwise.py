"""The scorer `judge_pairwise`: a language model compares an answer with others, each pair in both orders."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fuserl.rewards.fences import blanks_of, told
from fuserl.rewards.judging import Question, Reply, judging_of, the_mark
from fuserl.rewards.protocol import Item, Score
from fuserl.sources.protocol import Engine, Failure
from fuserl.sources.source import Source

REMEMBERED = 100_000  # replies that other answers of the same group may need as well
WIN = {("A", "B"): 1.0, ("B", "A"): 0.0}  # (as first, as second) -> share; everything else is a tie

Against = Callable[[Item], list[str]]  # the texts that an answer is compared with


def others(item: Item, *, most: int | None) -> list[str]:
    """The group's other answers; at most so many of them, drawn by a hash of the pair: the same on every run."""
    texts = [r.text for r in item.group.responses if r is not item.response and r.text.strip()]
    if most is None or len(texts) <= most:
        return texts
    drawn = sorted(texts, key=lambda text: hashlib.sha256(f"{item.response.text}\0{text}".encode()).digest())
    return drawn[:most]


def reference(item: Item) -> list[str]:
    """The group's reference, where it has one."""
    return [item.group.reference] if item.group.reference and item.group.reference.strip() else []


def answers_of(item: Item, *, source: str) -> list[str]:
    """The answers of one source, a baseline say; its own are compared with its others."""
    return [r.text for r in item.group.responses if r.source == source and r is not item.response and r.text.strip()]


@dataclass
class Comparisons:
    """An answer with the questions that its score needs."""

    item: Item
    pairs: list[tuple[str, str]]  # keys of the questions: it stands first, it stands second
    ties: int = 0  # opponents with the same text: nobody is asked
    replies: dict[str, Reply] = field(default_factory=dict)
    scored: bool = False

    def ready(self) -> bool:
        """Whether all replies are there; said once."""
        first = not self.scored and all(key in self.replies for pair in self.pairs for key in pair)
        self.scored = self.scored or first
        return first


class PairwiseJudge:
    """The mean share of wins: 1 where the judge prefers the answer in both orders, 0 where it prefers the other in both.

    Where it prefers what stands first, or second, or neither, that is a tie, and counts one half.

    Args:
        engine, source: the judge, as for `judge.Judge`.
        template: with the blanks question, answer_a, answer_b and fence.
        against: whom each answer meets.

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
        against: Against,
        attempts: int,
        again_temperature: float,
        after: str | None,
    ) -> None:
        needed = ("question", "answer_a", "answer_b")
        blanks_of(template, needed=needed, known=(), where=f"`rewards.{name}.template`")
        self.name, self.against = name, against
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
        """The judge and what it is asked; whom an answer meets is its context."""
        return {**self.judging.identity(), "swapped": True}

    def context(self, item: Item) -> list[str]:
        """The opponents, whatever their order."""
        return sorted(hashlib.sha256(text.encode()).hexdigest()[:32] for text in self.against(item))

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Shares of wins, as they are complete. A pair that two answers of a group need is asked once."""
        waiting: dict[str, list[Comparisons]] = {}
        known: OrderedDict[str, Reply] = OrderedDict()
        ready: deque[Comparisons] = deque()

        def questions() -> Iterator[Question]:
            """Those that an item needs and that nobody has asked yet."""
            for item in items:
                whole, texts = self._comparisons(item)
                for key, pair in texts.items():
                    if key in known:
                        whole.replies[key] = known[key]
                    elif key in waiting:
                        waiting[key].append(whole)
                    else:
                        waiting[key] = [whole]
                        yield self.judging.question(key, pair)
                if whole.ready():
                    ready.append(whole)

        for question, reply in self.judging.replies(questions(), _preferred):
            if reply.failure is None:
                known[question.key] = reply
                if len(known) > REMEMBERED:
                    known.popitem(last=False)
            for whole in waiting.pop(question.key):
                whole.replies[question.key] = reply
                if whole.ready():
                    ready.append(whole)
            while ready:
                yield self._score(ready.popleft())
        yield from map(self._score, ready)

    def close(self) -> None:
        """Close the engine."""
        self.judging.close()

    def _comparisons(self, item: Item) -> tuple[Comparisons, dict[str, dict[str, str]]]:
        """What the answer's score needs, and the texts of each question by its key."""
        ours, asked = item.response.text, told(item.group.prompt)
        whole, texts = Comparisons(item, []), {}
        if not ours.strip():
            return whole, texts
        for theirs in self.against(item):
            if theirs == ours:
                whole.ties += 1
                continue
            keys = _key(asked, ours, theirs), _key(asked, theirs, ours)
            whole.pairs.append(keys)
            texts[keys[0]] = {"question": asked, "answer_a": ours, "answer_b": theirs}
            texts[keys[1]] = {"question": asked, "answer_a": theirs, "answer_b": ours}
        return whole, texts

    def _score(self, whole: Comparisons) -> Score | Failure:
        key = whole.item.key
        if failure := next((r.failure for r in whole.replies.values() if r.failure is not None), None):
            return Failure(key, failure.what, failure.passing, failure.wait)
        said = [(whole.replies[first].value, whole.replies[second].value) for first, second in whole.pairs]
        readable = [pair for pair in said if None not in pair]
        shares = [0.5] * whole.ties + [WIN.get(pair, 0.5) for pair in readable]
        detail = self.judging.detail() | _counts(shares, readable) | {"unread": len(said) - len(readable)}
        if shares:
            return Score(key, sum(shares) / len(shares), None, detail)
        return Score(key, None, "unknown", {"why": self._why(whole)} | detail)

    def _why(self, whole: Comparisons) -> str:
        if not whole.item.response.text.strip():
            return "the answer is empty"
        return (
            "no single [[A]], [[B]] or [[C]] in what the judge said"
            if whole.pairs
            else "there is nothing to compare with"
        )


def _key(asked: str, first: str, second: str) -> str:
    return hashlib.sha256(json.dumps([asked, first, second]).encode()).hexdigest()[:32]


def _preferred(words: str) -> str | None:
    mark = the_mark(words)
    return mark if mark in ("A", "B", "C") else None


def _counts(shares: Sequence[float], readable: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Wins, ties and losses; and how often the judge preferred a place whoever stood there."""
    return {
        "wins": shares.count(1.0),
        "ties": shares.count(0.5),
        "losses": shares.count(0.0),
        "by_place": sum(first == second != "C" for first, second in readable),
    }

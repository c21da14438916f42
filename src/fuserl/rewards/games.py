"""The scorer `judge_games`: a language model compares an answer with a baseline's in two games, five verdicts each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from fuserl.errors import FuserlError
from fuserl.records.hub import file_of
from fuserl.rewards.fences import told
from fuserl.rewards.judging import Question, Reply, judging_of
from fuserl.rewards.protocol import Item, Score
from fuserl.rewards.wordings import Wording, authors, of_all, own, parsed
from fuserl.sources.protocol import Engine, Failure
from fuserl.sources.source import Source

MARK = re.compile(r"\[\[\s*([AB<>=]+)\s*\]\]", re.IGNORECASE)
SHARES = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}  # verdict -> what A won
SAME = {"B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B", "A<B": "B>A", "A<<B": "B>>A"}  # other ways to write one
BLANKS = ("question", "answer_a", "answer_b")
NAMES = {  # blanks in the files of Arena-Hard, v0.1 and v2
    "question_1": "question", "answer_1": "answer_a", "answer_2": "answer_b",
    "QUESTION": "question", "ANSWER_A": "answer_a", "ANSWER_B": "answer_b",
}  # fmt: skip
OTHERWISE = "otherwise"  # the wording for domains that have none of their own


def verdict_of(words: str) -> str | None:
    """The one verdict that a judge's words hold, however often; None where there is none, or another one beside it.

    >>> verdict_of("So: [[A>>B]]"), verdict_of("[[A<B]]"), verdict_of("[[A>B]] or [[B>A]]"), verdict_of("[[A]]")
    ('A>>B', 'B>A', None, None)
    """
    found = {SAME.get(mark, mark) for mark in (found.upper() for found in MARK.findall(words))}
    return found.pop() if len(found) == 1 and found <= SHARES.keys() else None


def share_of(verdict: str, *, first: bool) -> float:
    """What the answer won that stood first (A), or second."""
    return SHARES[verdict] if first else 1 - SHARES[verdict]


@dataclass
class Pair:
    """An answer with what its two games said so far: the baseline stood first, the answer stood first."""

    item: Item
    keys: tuple[str, str]
    replies: dict[str, Reply] = field(default_factory=dict)


class GameJudge:
    """Two games against the group's reference, the baseline's answer, with swapped places: the mean share of wins.

    Args:
        engine, source: the judge, as for `judge.Judge`.
        template: our wording, with the blanks question, answer_a, answer_b and fence.
        prompts: a file of Arena-Hard's settings with the authors' `system_prompt` (one, or one a category) and
            `prompt_template`, used instead; None: ours.

    Raises:
        FuserlError: a setting or the file is wrong. The engine starts when it is needed.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Callable[[Source], Engine],
        source: Mapping[str, Any],
        template: str,
        prompts: str | None,
        attempts: int,
        again_temperature: float,
        after: str | None,
    ) -> None:
        own_wording = own(template, BLANKS, (), f"`rewards.{name}.template`")
        self.wordings = wordings_of(prompts, source.get("system")) if prompts else {OTHERWISE: own_wording}
        self.name = name
        self.judging = judging_of(
            name,
            engine=engine,
            source=source,
            template=of_all(self.wordings),
            attempts=attempts,
            again_temperature=again_temperature,
            after=after,
        )

    def identity(self) -> Mapping[str, Any]:
        """The judge and what it is asked."""
        return {**self.judging.identity(), "verdicts": MARK.pattern, "swapped": True}

    def context(self, item: Item) -> str | None:
        """The domain, where domains are asked about in their own words."""
        return None if OTHERWISE in self.wordings and len(self.wordings) == 1 else item.group.domain

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Shares as both games of an answer are played."""
        waiting: dict[str, Pair] = {}
        unasked: list[Score] = []

        def questions() -> Iterator[Question]:
            """Two games an item; what is known without a judge is set aside."""
            for item in items:
                if score := self._unasked(item):
                    unasked.append(score)
                    continue
                theirs, ours = item.group.reference or "", item.response.text
                pair = Pair(item, (f"{item.key} baseline first", f"{item.key} answer first"))
                for key, texts in zip(pair.keys, ((theirs, ours), (ours, theirs)), strict=True):
                    waiting[key] = pair
                    yield self._question(key, item, *texts)

        for question, reply in self.judging.replies(questions(), verdict_of):
            pair = waiting.pop(question.key)
            pair.replies[question.key] = reply
            if len(pair.replies) == len(pair.keys):
                yield self._score(pair)
            while unasked:
                yield unasked.pop()
        yield from unasked

    def close(self) -> None:
        """Close the engine."""
        self.judging.close()

    def _unasked(self, item: Item) -> Score | None:
        """What is known without a judge."""
        if item.group.reference is None:
            return Score(item.key, None, "unknown", {"why": "the group has no baseline's answer"})
        if item.group.reference == item.response.text:
            games = [{"first": first, "verdict": "A=B", "said": ""} for first in ("baseline", "answer")]
            return Score(item.key, 0.5, None, {"why": "the answers are the same text", "games": games})
        return None

    def _question(self, key: str, item: Item, first: str, second: str) -> Question:
        wording = self.wordings.get(item.group.domain, self.wordings.get(OTHERWISE))
        if wording is None:
            raise FuserlError(
                f"the judge has no words for the category `{item.group.domain}`",
                where=f"`rewards.{self.name}.prompts`",
                hint=f"the file's `system_prompt` has {', '.join(self.wordings)}; add it, or `{OTHERWISE}`",
            )
        texts = {"question": told(item.group.prompt), "answer_a": first, "answer_b": second}
        return Question(key, wording.told(texts, MARK), wording.system)

    def _score(self, pair: Pair) -> Score | Failure:
        key, (first, second) = pair.item.key, (pair.replies[key] for key in pair.keys)
        if failure := first.failure or second.failure:
            return Failure(key, failure.what, failure.passing, failure.wait)
        games = [
            {"first": who, "verdict": reply.value, "said": reply.said, "attempts": reply.attempts}
            for who, reply in (("baseline", first), ("answer", second))
        ]
        detail = self.judging.detail() | {"games": games}
        if first.value is None or second.value is None:
            why = "no single verdict from [[A>>B]] to [[B>>A]] in what the judge said"
            return Score(key, None, "unknown", {"why": why} | detail)
        share = (share_of(first.value, first=False) + share_of(second.value, first=True)) / 2
        return Score(key, share, None, detail)


def wordings_of(path: str, system: str | None) -> dict[str, Wording]:
    """The authors' wordings, by category where their file has several.

    Args:
        path: judge_config.yaml of v0.1, or arena-hard-v2.0.yaml; the latter's system prompts stand in the authors' code,
            so add them to the file as `system_prompt`, a text or a mapping of category to text.
        system: of the judge's source, taken where the file has none.

    Raises:
        FuserlError: the file is something else, or there is no system prompt at all.
    """
    found = parsed(file_of(path), yaml.safe_load)
    if not isinstance(found, Mapping) or "prompt_template" not in found:
        raise FuserlError("the file holds no `prompt_template`", where=path, hint="give Arena-Hard's own settings")
    text = found["prompt_template"]
    if isinstance(text, list):
        if len(text) != 1:
            raise FuserlError(f"the judge would be told {len(text)} turns", where=path, hint="give one prompt_template")
        text = text[0]
    systems = found.get("system_prompt") or system
    if not systems:
        raise FuserlError(
            "there is no system prompt for the judge",
            where=path,
            hint="v2's authors keep it in their code: add it to the file as `system_prompt`, or give `source.system`",
        )
    by_domain = systems if isinstance(systems, Mapping) else {OTHERWISE: systems}
    return {str(key): authors(text, value, NAMES, BLANKS, (), path) for key, value in by_domain.items()}

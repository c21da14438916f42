"""The scorer `judge_turns`: a language model rates the first or the second answer of a conversation, alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.hub import file_of
from fuserl.rewards.judging import Question, judging_of, require_range
from fuserl.rewards.protocol import Item, Score
from fuserl.rewards.wordings import Wording, authors, of_all, own, parsed
from fuserl.sources.protocol import Engine, Failure
from fuserl.sources.source import Source

MARK = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
REFERENCES = "references"  # of a group's extra: the gold answer of each turn
FIRST, SECOND = ("question", "answer"), ("question_1", "answer_1", "question_2", "answer_2")
NEEDED = {  # wording -> its blanks
    "first": FIRST,
    "first_with_reference": (*FIRST, "ref_answer_1"),
    "second": SECOND,
    "second_with_reference": (*SECOND, "ref_answer_1", "ref_answer_2"),
}
NAMES = {  # of the same in FastChat's judge_prompts.jsonl
    "first": "single-v1",
    "first_with_reference": "single-math-v1",
    "second": "single-v1-multi-turn",
    "second_with_reference": "single-math-v1-multi-turn",
}


class TurnJudge:
    """One rating an answer, `[[7]]` in the judge's words, in its range; the second answer is rated with the first turn.

    Args:
        engine, source: the judge, as for `judge.Judge`.
        low, high: of a rating, both allowed.
        templates: our wordings, by the keys of NEEDED, each with a fence.
        prompts: FastChat's judge_prompts.jsonl with the authors' wordings, used instead; None: ours.

    Raises:
        FuserlError: a setting or the file is wrong. The engine starts when it is needed.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Callable[[Source], Engine],
        source: Mapping[str, Any],
        low: float,
        high: float,
        templates: Mapping[str, str],
        prompts: str | None,
        attempts: int,
        again_temperature: float,
        after: str | None,
    ) -> None:
        require_range(name, low, high)
        if lacking := sorted(NEEDED.keys() - templates.keys()):
            raise FuserlError(f"there is no template `{lacking[0]}`", where=f"`rewards.{name}.templates`")
        ours = {
            key: own(templates[key], needed, (), f"`rewards.{name}.templates.{key}`") for key, needed in NEEDED.items()
        }
        self.name, self.low, self.high = name, low, high
        self.wordings = wordings_of(prompts) if prompts else ours
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
        """The judge, what it is asked, and its range."""
        return {**self.judging.identity(), "rating": MARK.pattern, "range": [self.low, self.high]}

    def context(self, item: Item) -> list[str] | None:
        """The gold answers of all turns."""
        return item.group.extra.get(REFERENCES) or None

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Ratings as they come."""
        for question, reply in self.judging.replies(map(self._question, items), self._rating):
            yield self.judging.rated(question.key, reply, self.low, self.high)

    def close(self) -> None:
        """Close the engine."""
        self.judging.close()

    def _question(self, item: Item) -> Question:
        """Raises: FuserlError: the conversation has more than two questions, or fewer references."""
        said = [message.content for message in item.group.prompt if message.role == "user"]
        answers = [message.content for message in item.group.prompt if message.role == "assistant"]
        answers.append(item.response.text)
        references = self.context(item) or []
        if len(said) != len(answers) or len(said) > 2 or (references and len(references) < len(said)):
            raise FuserlError(
                "a judge of turns rates conversations of one or two questions, each with its reference or none",
                where=f"prompt `{item.group.id}`",
                hint="other data can be rated with `reward=judge`",
            )
        texts = {"question": said[0], "answer": answers[0]}
        for name, turns in (("question", said), ("answer", answers), ("ref_answer", references)):
            texts |= {f"{name}_{number}": text for number, text in enumerate(turns, 1)}
        kind = ("first", "second")[len(said) - 1] + ("_with_reference" if references else "")
        wording = self.wordings[kind]
        return Question(item.key, wording.told(texts, MARK), wording.system)

    def _rating(self, words: str) -> float | None:
        """The one number in double brackets, however often, where it is in the range."""
        found = {float(mark) for mark in MARK.findall(words)}
        rating = found.pop() if len(found) == 1 else None
        return rating if rating is not None and self.low <= rating <= self.high else None


def wordings_of(path: str) -> dict[str, Wording]:
    """FastChat's wordings for single answers.

    Raises:
        FuserlError: the file is something else, or lacks one of them.
    """
    rows = parsed(file_of(path), lambda text: [json.loads(line) for line in text.splitlines() if line.strip()])
    named = {row.get("name"): row for row in rows if isinstance(row, Mapping)}
    if lacking := [name for name in NAMES.values() if name not in named]:
        raise FuserlError(
            f"the file has no prompt `{lacking[0]}`", where=path, hint="give FastChat's data/judge_prompts.jsonl"
        )
    known = {blank for needed in NEEDED.values() for blank in needed}
    return {
        key: authors(
            named[name].get("prompt_template"),
            named[name].get("system_prompt"),
            {},
            NEEDED[key],
            known,
            f"{path}: {name}",
        )
        for key, name in NAMES.items()
    }

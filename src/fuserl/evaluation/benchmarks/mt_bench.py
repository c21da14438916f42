"""MT-Bench: conversations of two turns, each answer rated alone from 1 to 10."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.judged import WITHOUT_AUTHORS, judge_about, ready, sampling_of
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Question, Result, Work
from fuserl.evaluation.benchmarks.questions import Questions, rows
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.findings import FIELD
from fuserl.rewards.turns import REFERENCES
from fuserl.rewards.wordings import file_of
from fuserl.sources.protocol import Sampling

OTHERWISE = "otherwise"  # the temperature of categories that have none of their own
TURNS = "turns"  # of a group's extra: what the user says, in order
NUM_TURNS = 2
GOLD = "give FastChat's data/mt_bench/reference_answer/gpt-4.jsonl as `references`"
PLACES = ("first_turn", "second_turn")


def question(row: Mapping[str, Any]) -> PromptGroup:
    """A row of question.jsonl: `question_id` or `prompt_id`, `category`, two `turns` (or `prompt`), perhaps `reference`."""
    turns = list(row["turns"] if "turns" in row else row["prompt"])
    if len(turns) != NUM_TURNS or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"it must have {NUM_TURNS} turns of text")
    key = str(row["question_id"] if "question_id" in row else row["prompt_id"])
    extra = {TURNS: turns} | ({REFERENCES: list(row["reference"])} if row.get("reference") else {})
    return PromptGroup(key, (Message("user", turns[0]),), (), str(row["category"]), extra=extra)


class Rated(NamedTuple):
    """A question with its conversation and what was said of it."""

    group: PromptGroup
    answers: tuple[Response, ...]  # of each turn, as far as they came
    ratings: tuple[float | None, float | None]


@dataclass(frozen=True)
class MTBench:
    """See conf/benchmark/mt_bench.yaml for the settings and their reasons.

    Args:
        references: a file of gold answers in FastChat's format; None: those in the questions' rows.
        with_reference: categories whose answers are held against gold ones.
        sampling: how answers are drawn, but for the temperature.
        temperatures: by category, `otherwise` for all others.
        resamples: of the questions, for intervals.
    """

    name: str
    questions: Questions
    references: str | None
    with_reference: Sequence[str]
    sampling: Mapping[str, Any]
    temperatures: Mapping[str, float]
    resamples: int

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`: both turns of every question."""
        for group in self.questions.groups:
            for number, turn in enumerate(group.extra[TURNS], 1):
                yield f"{group.id}:{number}", turn

    def identity(self) -> Mapping[str, Any]:
        """Questions, gold answers, how answers are drawn."""
        return {
            "questions": self.questions.digest,
            "references": hashlib.sha256(json.dumps(self._gold, sort_keys=True).encode()).hexdigest()[:16],
            "sampling": dict(self.sampling),
            "temperatures": dict(self.temperatures),
            "resamples": self.resamples,
        }

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        groups = [self._beside_gold(group) for group in self.questions.groups]
        ready(work.graders)
        first = work.answered([Question(group, self._sampling(group.domain)) for group in groups])
        seconds = [_second(group) for group in first if group.responses]
        second = work.answered([Question(group, self._sampling(group.domain)) for group in seconds])
        answered = [group for group in [*first, *second] if group.responses]
        graded = {group.id: group for group in (work.scored(answered) if answered else [])}
        rated = [_rated(group, graded) for group in groups]
        counts = _counts(rated)
        about = {
            "questions": self.questions.path,
            "digest": self.questions.digest,
            "references": self.references or ("the questions' own" if self._gold else "none"),
            "sampling": dict(self.sampling),
            "temperatures": dict(self.temperatures),
            **judge_about(work.graders, list(graded.values()), None),
        }
        answers = [_row(one) for one in rated]
        return Result(tuple(self._numbers(rated)), counts, about, answers, self._notes(counts, about))

    @cached_property
    def _gold(self) -> dict[str, list[str]]:
        """Gold answers of both turns, by question, of the categories that are held against them.

        Raises:
            FuserlError: the file cannot be read, or lacks a question of these categories.
        """
        groups = [group for group in self.questions.groups if group.domain in self.with_reference]
        if self.references is None:
            return {g.id: gold for g in groups if len(gold := list(g.extra.get(REFERENCES, []))) == NUM_TURNS}
        found = gold_in(self.references)
        lacking = [group.id for group in groups if len(found.get(group.id, [])) < NUM_TURNS]
        if lacking:
            raise FuserlError(
                f"{len(lacking):,} questions have no gold answers for both turns, such as `{lacking[0]}`",
                where=self.references,
                hint=f"{GOLD}, or `benchmarks.{self.name}.with_reference=[]` to do without",
            )
        return {group.id: found[group.id] for group in groups}

    def _beside_gold(self, group: PromptGroup) -> PromptGroup:
        extra = {key: value for key, value in group.extra.items() if key != REFERENCES}
        gold = self._gold.get(group.id)
        return replace(group, extra=extra | ({REFERENCES: gold} if gold else {}))

    def _sampling(self, category: str) -> Sampling:
        temperature = self.temperatures.get(category, self.temperatures[OTHERWISE])
        return replace(sampling_of(self.sampling), temperature=float(temperature))

    def _numbers(self, rated: Sequence[Rated]) -> list[Number]:
        """The mean over all ratings, of each turn, of each category."""
        numbers = [self._mean("score", [one.ratings for one in rated])]
        for turn, name in enumerate(PLACES):
            numbers.append(self._mean(f"score_{name}", [(one.ratings[turn],) for one in rated]))
        for category in dict.fromkeys(one.group.domain for one in rated):
            part = [one.ratings for one in rated if one.group.domain == category]
            numbers.append(self._mean(f"score/{category}", part))
        return numbers

    def _mean(self, name: str, ratings: Sequence[Sequence[float | None]]) -> Number:
        """Mean of the ratings that are known; the turns of a question go together: a bootstrap draws questions."""
        known = [[rating for rating in one if rating is not None] for one in ratings]
        known = [one for one in known if one]
        if not known:
            return Number(name, None)
        totals = np.array([[sum(one), len(one)] for one in known], dtype=np.float64)
        draws = np.random.default_rng(0).integers(len(known), size=(self.resamples, len(known)))
        drawn = totals[draws].sum(axis=1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        mean = totals[:, 0].sum() / totals[:, 1].sum()
        return Number(name, float(mean), float(low), float(high), "questions, bootstrap")

    def _notes(self, counts: Mapping[str, int], about: Mapping[str, Any]) -> tuple[str, ...]:
        missing = {"unanswered": "answers did not come", "unknown": "answers have no rating"}
        notes = [f"{counts[key]:,} {what}: left out of the means" for key, what in missing.items() if counts[key]]
        if not about["judge_prompts"]:
            notes.append(WITHOUT_AUTHORS)
        if self._gold and self.references is None:
            lacking = sum(group.domain in self.with_reference for group in self.questions.groups) - len(self._gold)
            notes.append(
                "gold answers are those of the questions' file: published numbers were made with GPT-4's"
                + (f"; {lacking:,} questions have none there" if lacking else "")
            )
        return tuple(notes)


def gold_in(path: str) -> dict[str, list[str]]:
    """FastChat's reference_answer/MODEL.jsonl: both turns by question.

    Raises:
        FuserlError: it cannot be found, or is something else.
    """
    found = {}
    for where, row in rows(str(file_of(path)), None, None, None):
        try:
            found[str(row["question_id"])] = [str(turn) for turn in row["choices"][0]["turns"]]
        except (KeyError, TypeError, IndexError) as error:
            raise FuserlError(
                f"the row holds no gold answers ({error!r})",
                where=where,
                hint=GOLD,
            ) from error
    return found


def _second(group: PromptGroup) -> PromptGroup:
    """The second turn, behind the model's own first answer."""
    said = (*group.prompt, Message("assistant", group.responses[0].text), Message("user", group.extra[TURNS][1]))
    return replace(group, id=_second_id(group), prompt=said, responses=())


def _second_id(group: PromptGroup) -> str:
    return f"{group.id}:2"


def _rated(group: PromptGroup, graded: Mapping[str, PromptGroup]) -> Rated:
    found = [graded[key].responses[0] if key in graded else None for key in (group.id, _second_id(group))]
    ratings = [None if one is None else one.reward for one in found]
    return Rated(group, tuple(one for one in found if one is not None), (ratings[0], ratings[1]))


def _row(one: Rated) -> Graded:
    """Both turns as one answer: its score is their mean, unknown where one is."""
    turns = one.group.extra[TURNS]
    details = [entry.get("detail") or {} for answer in one.answers for entry in answer.extra.get(FIELD, {}).values()]
    ratings = [rating for rating in one.ratings if rating is not None]
    return Graded(
        one.group.id,
        "\n\n".join(turns),
        "\n\n".join(answer.text for answer in one.answers),
        sum(ratings) / NUM_TURNS if len(ratings) == NUM_TURNS else None,
        tokens=sum(int(answer.extra.get("response_tokens") or 0) for answer in one.answers),
        unfinished=any(answer.finish_reason == "length" for answer in one.answers),
        detail={
            "category": one.group.domain,
            "ratings": list(one.ratings),
            "answers": [answer.text for answer in one.answers],
            "said": [detail.get("said", "") for detail in details],
        },
    )


def _counts(rated: Sequence[Rated]) -> dict[str, int]:
    answers = [answer for one in rated for answer in one.answers]
    known = sum(rating is not None for one in rated for rating in one.ratings)
    return {
        "prompts": len(rated),
        "answers": len(answers),
        "unanswered": NUM_TURNS * len(rated) - len(answers),
        "unfinished": sum(answer.finish_reason == "length" for answer in answers),
        "unknown": len(answers) - known,
    }

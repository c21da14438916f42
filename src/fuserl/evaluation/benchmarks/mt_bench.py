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
from fuserl.evaluation.benchmarks.judged import WITHOUT_AUTHORS, judge_about, ready
from fuserl.evaluation.benchmarks.mt_files import GOLD, Ratings, gold_in, judgments_in, write_answers, write_judgments
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Question, Result, Work
from fuserl.evaluation.benchmarks.questions import Questions
from fuserl.records.hub import file_of
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.findings import FIELD
from fuserl.rewards.turns import REFERENCES
from fuserl.sources.protocol import Sampling
from fuserl.sources.source import sampling_of

OTHERWISE = "otherwise"  # the temperature of categories that have none of their own
TURNS = "turns"  # of a group's extra: what the user says, in order
NUM_TURNS = 2
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
    answers: tuple[Response, ...]  # of each turn, as far as they came and are known
    ratings: Ratings
    num_answers: int  # that were rated, or should have been


@dataclass(frozen=True)
class MTBench:
    """See conf/benchmark/mt_bench.yaml for the settings and their reasons.

    Args:
        references: a file of gold answers in FastChat's format; None: those in the questions' rows.
        with_reference: categories whose answers are held against gold ones.
        judgments: a file of judgments in FastChat's format, counted instead of asking anyone; None: model and judge are asked.
        sampling: how answers are drawn, but for the temperature.
        temperatures: by category, `otherwise` for all others.
        resamples: of the questions, for intervals.
    """

    name: str
    questions: Questions
    references: str | None
    with_reference: Sequence[str]
    judgments: str | None
    sampling: Mapping[str, Any]
    temperatures: Mapping[str, float]
    resamples: int

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`: both turns of every question."""
        return ((group.id, turn) for group in self.questions.groups for turn in group.extra[TURNS])

    def identity(self) -> Mapping[str, Any]:
        """Questions, gold answers, how answers are drawn."""
        return {
            "questions": self.questions.digest,
            "references": hashlib.sha256(json.dumps(self._gold, sort_keys=True).encode()).hexdigest()[:16],
            "sampling": dict(self.sampling),
            "temperatures": dict(self.temperatures),
            "resamples": self.resamples,
            "judgments": self.judgments and hashlib.sha256(file_of(self.judgments).read_bytes()).hexdigest()[:16],
        }

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        if self.judgments is not None:
            return self._counted(work, self.judgments)
        groups = [self._beside_gold(group) for group in self.questions.groups]
        ready(work.graders)
        first = work.answered([Question(group, self._sampling(group.domain)) for group in groups])
        seconds = [_second(group) for group in first if group.responses]
        second = work.answered([Question(group, self._sampling(group.domain)) for group in seconds])
        answered = [group for group in [*first, *second] if group.responses]
        graded = {group.id: group for group in (work.scored(answered) if answered else [])}
        rated = [_rated(group, graded) for group in groups]
        judge = judge_about(work.graders, list(graded.values()), None)
        _write(work, rated, str(judge.get("judge")))
        gold = self.references or ("the questions' own" if self._gold else "none")
        drawn = {"sampling": dict(self.sampling), "temperatures": dict(self.temperatures)}
        return self._result(rated, {"references": gold, **drawn, **judge}, [])

    def _counted(self, work: Work, path: str) -> Result:
        """The numbers of a file of judgments."""
        found = judgments_in(path, work.source.name)
        rated = []
        for group in self.questions.groups:
            turns = found.ratings.get(group.id, {})
            rated.append(Rated(group, (), (turns.get(1), turns.get(2)), len(turns)))
        if not any(one.num_answers for one in rated):
            raise FuserlError(
                "none of the questions appears in this file", where=path, hint=f"it must be of {self.questions.path}"
            )
        about = {"judgments": path, **judge_about({}, [], {"judge": found.judge})}
        notes = [f"ratings are those of `{found.model}` in {path}: neither model nor judge was asked"]
        return self._result(rated, about, notes)

    def _result(self, rated: Sequence[Rated], about: Mapping[str, Any], notes: Sequence[str]) -> Result:
        counts = _counts(rated)
        told = {"questions": self.questions.path, "digest": self.questions.digest, **about}
        rows = [_row(one) for one in rated]
        return Result(tuple(self._numbers(rated)), counts, told, rows, (*self._notes(counts, about), *notes))

    @cached_property
    def _gold(self) -> dict[str, list[str]]:
        """Gold answers of both turns, by question, of the categories that are held against them.

        Raises:
            FuserlError: the file cannot be read, or lacks a question of these categories.
        """
        if self.judgments is not None:
            return {}
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
        sampling = dict(self.sampling) | {"temperature": float(temperature)}
        return sampling_of(sampling, f"`benchmarks.{self.name}.sampling` and `temperatures`")

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
        if self.judgments is None and not about["judge_prompts"]:
            notes.append(WITHOUT_AUTHORS)
        if self._gold and self.references is None:
            lacking = sum(group.domain in self.with_reference for group in self.questions.groups) - len(self._gold)
            notes.append(
                "gold answers are those of the questions' file: published numbers were made with GPT-4's"
                + (f"; {lacking:,} questions have none there" if lacking else "")
            )
        return tuple(notes)


def _second(group: PromptGroup) -> PromptGroup:
    """The second turn, behind the model's own first answer."""
    said = (*group.prompt, Message("assistant", group.responses[0].text), Message("user", group.extra[TURNS][1]))
    return replace(group, id=_second_id(group), prompt=said, responses=())


def _second_id(group: PromptGroup) -> str:
    return f"{group.id}:2"


def _rated(group: PromptGroup, graded: Mapping[str, PromptGroup]) -> Rated:
    found = [graded[key].responses[0] if key in graded else None for key in (group.id, _second_id(group))]
    ratings = [None if one is None else one.reward for one in found]
    answers = tuple(one for one in found if one is not None)
    return Rated(group, answers, (ratings[0], ratings[1]), len(answers))


def _write(work: Work, rated: Sequence[Rated], judge: str) -> None:
    """What FastChat's own scripts read."""
    model = work.source.name
    write_answers(work.folder, model, {one.group.id: [answer.text for answer in one.answers] for one in rated})
    said = (
        (one.group.id, turn, one.ratings[turn - 1], _said(answer))
        for turn in range(1, NUM_TURNS + 1)
        for one in rated
        for answer in one.answers[turn - 1 : turn]
    )
    write_judgments(work.folder, model, judge, said)


def _said(answer: Response) -> str:
    """The end of what the judge said."""
    entry = next(iter(answer.extra.get(FIELD, {}).values()), {})
    return str((entry.get("detail") or {}).get("said") or "")


def _row(one: Rated) -> Graded:
    """Both turns as one answer: its score is their mean, unknown where one is."""
    turns = one.group.extra[TURNS]
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
            "said": [_said(answer) for answer in one.answers],
        },
    )


def _counts(rated: Sequence[Rated]) -> dict[str, int]:
    number = sum(one.num_answers for one in rated)
    known = sum(rating is not None for one in rated for rating in one.ratings)
    return {
        "prompts": len(rated),
        "answers": number,
        "unanswered": NUM_TURNS * len(rated) - number,
        "unfinished": sum(answer.finish_reason == "length" for one in rated for answer in one.answers),
        "unknown": number - known,
    }

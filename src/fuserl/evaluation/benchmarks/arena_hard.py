"""Arena-Hard: a judge compares each answer with a baseline's, in two games with swapped places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.arena_files import (
    Answers,
    Judgment,
    Judgments,
    answers_in,
    judgments_in,
    write_answers,
    write_judgments,
)
from fuserl.evaluation.benchmarks.arena_numbers import Counting, Numbers, Played, mean_tokens, numbers_of
from fuserl.evaluation.benchmarks.judged import WITHOUT_AUTHORS, judge_about, ready
from fuserl.evaluation.benchmarks.protocol import Graded, Question, Result, Work
from fuserl.evaluation.benchmarks.questions import Questions
from fuserl.evaluation.benchmarks.style import Count, Differences, Style, style_of
from fuserl.records.schema import PromptGroup, Response
from fuserl.rewards.described import described
from fuserl.rewards.findings import FIELD
from fuserl.sources.source import sampling_of

OTHERWISE = "otherwise"  # the baseline of categories that have none of their own


@dataclass(frozen=True)
class ArenaHard:
    """See conf/benchmark/arena_hard.yaml for the settings and their reasons.

    Args:
        baselines: category -> a file of answers in Arena-Hard's format; `otherwise` for all others.
        answers: a file of the model's answers in that format, judged instead of asking it; None: it is asked.
        judgments: a file of judgments in that format, counted instead of asking a judge; None: it is asked.
        strong: weight of a verdict by far.
        count: tokens of a text, for style.
        differences: of two answers' styles.
        resamples: of the prompts, for intervals.
    """

    name: str
    questions: Questions
    sampling: Mapping[str, Any]
    baselines: Mapping[str, str]
    revision: str | None
    answers: str | None
    judgments: str | None
    strong: float
    count: Count
    differences: Differences
    resamples: int

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `Benchmark`."""
        return self.questions.texts()

    def identity(self) -> Mapping[str, Any]:
        """Questions, the baseline's answers, files given, how answers are drawn and verdicts counted."""
        theirs = [[key, name, text] for key, (name, text) in sorted(self._theirs.items())]
        given = [
            read(path, None) for read, path in ((answers_in, self.answers), (judgments_in, self.judgments)) if path
        ]
        return {
            "questions": self.questions.digest,
            "baselines": hashlib.sha256(json.dumps([theirs, repr(given)]).encode()).hexdigest()[:16],
            "sampling": dict(self.sampling),
            "counting": [self.strong, described(self.count), described(self.differences), self.resamples],
        }

    def run(self, work: Work) -> Result:
        """See `Benchmark`."""
        groups = [self._beside_baseline(group) for group in self.questions.groups]
        given = self._given_answers()
        if self.judgments is not None:
            verdicts = judgments_in(self.judgments, None)
            self._require_known(verdicts.games, self.judgments)
            return self._result(work, groups, given, verdicts, [])
        ready(work.graders)
        answered = [group for group in self._answered(work, groups, given) if group.responses]
        graded = work.scored(answered) if answered else []
        ours = Answers(given.model if given else work.source.name, {g.id: g.responses[0].text for g in answered})
        kept = {group.id: group for group in graded}
        verdicts = _judgments(ours.model, graded, work)
        return self._result(work, [kept.get(group.id, group) for group in groups], ours, verdicts, graded)

    def _answered(self, work: Work, groups: Sequence[PromptGroup], given: Answers | None) -> list[PromptGroup]:
        """With the model's answers, or those of a file."""
        if given is None:
            drawn = sampling_of(self.sampling, f"`benchmarks.{self.name}.sampling`")
            return work.answered([Question(group, drawn) for group in groups])
        texts = given.texts
        return [
            replace(group, responses=(Response(given.model, texts[group.id]),)) for group in groups if group.id in texts
        ]

    @cached_property
    def _theirs(self) -> dict[str, tuple[str, str]]:
        """(baseline, its answer) by question; none where nothing of it is needed.

        Raises:
            FuserlError: a question has no baseline's answer.
        """
        if self.judgments is not None and self.answers is None:
            return {}
        files = {path: answers_in(path, self.revision) for path in dict.fromkeys(self.baselines.values())}
        found: dict[str, tuple[str, str]] = {}
        missing = []
        for group in self.questions.groups:
            path = self.baselines.get(group.domain, self.baselines.get(OTHERWISE))
            if path is None or group.id not in files[path].texts:
                missing.append(f"`{group.id}` ({group.domain})")
                continue
            found[group.id] = files[path].model, files[path].texts[group.id]
        if missing:
            raise FuserlError(
                f"{len(missing):,} of {len(self.questions.groups):,} questions have no baseline's answer, such as {missing[0]}",
                where=f"`benchmarks.{self.name}.baselines`",
                hint="give a file of answers in Arena-Hard's format for every category, or for `otherwise`",
            )
        return found

    def _beside_baseline(self, group: PromptGroup) -> PromptGroup:
        """With the baseline's answer as the reference, which scorers are shown."""
        if group.id not in self._theirs:
            return group
        model, text = self._theirs[group.id]
        return replace(group, reference=text, extra={**group.extra, "baseline": model})

    def _given_answers(self) -> Answers | None:
        if self.answers is None:
            return None
        found = answers_in(self.answers, None)
        self._require_known(found.texts, self.answers)
        return found

    def _require_known(self, found: Mapping[str, Any], path: str) -> None:
        """Raises: FuserlError: a file has nothing to do with the questions."""
        if not any(group.id in found for group in self.questions.groups):
            raise FuserlError(
                "none of the questions appears in this file",
                where=path,
                hint=f"it must be of the questions in {self.questions.path}",
            )

    def _result(
        self,
        work: Work,
        groups: Sequence[PromptGroup],
        ours: Answers | None,
        verdicts: Judgments,
        graded: Sequence[PromptGroup],
    ) -> Result:
        """Count; write what Arena-Hard's own scripts read."""
        looks = {key: style_of(text, self.count) for key, text in ours.texts.items()} if ours else {}
        theirs = {group.id: style_of(group.reference, self.count) for group in groups if group.reference is not None}
        played = {group.id: one for group in groups if (one := _played(group, verdicts, looks, theirs))}
        if ours:
            write_answers(work.folder, ours, groups, looks)
        write_judgments(work.folder, verdicts, groups)
        found = self._numbers(list(played.values()), looks)
        about = self._about(work, verdicts, graded, found)
        rows = [
            self._row(group, ours, verdicts, played, looks) for group in groups if ours or group.id in verdicts.games
        ]
        counts = _counts(groups, ours, verdicts, played)
        return Result(tuple(found.numbers), counts, about, rows, self._notes(counts, ours, about, found, work))

    def _numbers(self, played: Sequence[Played], looks: Mapping[str, Style]) -> Numbers:
        """Of all questions, where they have one baseline; and of each category, where there are several."""
        how = Counting(self.strong, self.differences, self.resamples)
        categories = list(dict.fromkeys(group.domain for group in self.questions.groups))
        baselines = {self.baselines.get(category, self.baselines.get(OTHERWISE)) for category in categories}
        found = numbers_of(played, how) if len(baselines) == 1 else Numbers([], {}, [])
        for category in categories if len(categories) > 1 else ():
            part = [one for one in played if one.category == category]
            one = numbers_of(part, how, suffix=f"/{category}", whole=len(baselines) > 1)
            found.numbers.extend(one.numbers)
            found.notes.extend(one.notes)
            found.coefficients.update({f"{name}/{category}": value for name, value in one.coefficients.items()})
        found.numbers.append(mean_tokens("answer_tokens", list(looks.values()), self.resamples))
        return found

    def _about(self, work: Work, verdicts: Judgments, graded: Sequence[PromptGroup], found: Numbers) -> dict[str, Any]:
        baselines = sorted({name for name, _ in self._theirs.values()}) or list(verdicts.baselines)
        return {
            "questions": self.questions.path,
            "digest": self.questions.digest,
            "baseline": ", ".join(baselines) or "unknown",
            "sampling": dict(self.sampling),
            "strong_verdicts_weigh": self.strong,
            "style": {"tokens": described(self.count), "coefficients": found.coefficients},
            **judge_about(work.graders, graded, {"judge": verdicts.judge} if self.judgments else None),
            **({"answers": self.answers} if self.answers else {}),
            **({"judgments": self.judgments} if self.judgments else {}),
        }

    def _notes(
        self, counts: Mapping[str, int], ours: Answers | None, about: Mapping[str, Any], found: Numbers, work: Work
    ) -> tuple[str, ...]:
        missing = {
            "unanswered": "questions have no answer of the model",
            "unknown": "pairs of games have no verdict in one of them",
        }
        notes = [f"{counts[key]:,} {what}: left out of the numbers" for key, what in missing.items() if counts[key]]
        if self.judgments is not None:
            notes.append(f"verdicts are those of {self.judgments}: no judge was asked")
        elif not about["judge_prompts"]:
            notes.append(WITHOUT_AUTHORS)
        if ours is None:
            notes.append("without `answers` the style of answers is not known: no style-controlled win rate")
        elif ours.model != work.source.name:
            notes.append(f"the answers are those of `{ours.model}` in {self.answers}: the model was not asked")
        return (*notes, *found.notes)

    def _row(
        self,
        group: PromptGroup,
        ours: Answers | None,
        verdicts: Judgments,
        played: Mapping[str, Played],
        looks: Mapping[str, Style],
    ) -> Graded:
        games = verdicts.games.get(group.id)
        response = group.responses[0] if group.responses else None
        detail: dict[str, Any] = {"category": group.domain}
        if games:
            told = zip(("baseline", "answer"), games.verdicts, games.said, strict=True)
            detail["games"] = [{"first": who, "verdict": verdict, "said": said[-300:]} for who, verdict, said in told]
        if group.id in looks:
            detail["style"] = dict(zip(("tokens", "headers", "lists", "bold"), looks[group.id].row(), strict=True))
        return Graded(
            group.id,
            group.prompt[-1].content,
            ours.texts.get(group.id, "") if ours else "",
            played[group.id].score(self.strong) if group.id in played else None,
            tokens=int((response.extra.get("response_tokens") if response else None) or 0),
            unfinished=bool(response and response.finish_reason == "length"),
            detail=detail,
        )


def _judgments(model: str, graded: Sequence[PromptGroup], work: Work) -> Judgments:
    """What the judge said, as its scorer kept it."""
    games = {}
    for group in graded:
        entry = next(iter(group.responses[0].extra.get(FIELD, {}).values()), None)
        told = (entry or {}).get("detail", {}).get("games")
        if told:
            verdicts, said = ([game.get(key) for game in told] for key in ("verdict", "said"))
            games[group.id] = Judgment((verdicts[0], verdicts[1]), (said[0] or "", said[1] or ""))
    return Judgments(model, str(judge_about(work.graders, graded, None).get("judge")), (), games)


def _played(
    group: PromptGroup, verdicts: Judgments, ours: Mapping[str, Style], theirs: Mapping[str, Style]
) -> Played | None:
    """The question's games, where both have a verdict."""
    games = verdicts.games.get(group.id)
    if games is None or games.verdicts[0] is None or games.verdicts[1] is None:
        return None
    styles = (ours[group.id], theirs[group.id]) if group.id in ours and group.id in theirs else None
    return Played(group.id, group.domain, (games.verdicts[0], games.verdicts[1]), styles)


def _counts(
    groups: Sequence[PromptGroup], ours: Answers | None, verdicts: Judgments, played: Mapping[str, Played]
) -> dict[str, int]:
    responses = [group.responses[0] for group in groups if group.responses]
    known = verdicts.games.keys() | (ours.texts.keys() if ours else set())
    answered = sum(group.id in known for group in groups)
    return {
        "prompts": len(groups),
        "answers": answered,
        "unanswered": len(groups) - answered,
        "unfinished": sum(response.finish_reason == "length" for response in responses),
        "games": 2 * answered,
        "unknown": answered - len(played),
        "unread_games": sum(
            verdict is None
            for group in groups
            if group.id in verdicts.games
            for verdict in verdicts.games[group.id].verdicts
        ),
    }

"""Files of Arena-Hard, as its own scripts read and write them: questions, models' answers, judgments.

v0.1 named things `question_id`, `model_id`, `choices`; v2, and today's files of v0.1, name them `uid`, `model`, `messages`. Both
are read. What is written has the fields of both, so that scripts of either version take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.judged import file_name, written
from fuserl.evaluation.benchmarks.questions import read_row, rows
from fuserl.evaluation.benchmarks.style import Style
from fuserl.records.schema import Message, PromptGroup
from fuserl.rewards.games import verdict_of

NO_CATEGORY = "arena-hard-v0.1"

Row = Mapping[str, Any]


class Answers(NamedTuple):
    """What one model answered."""

    model: str
    texts: dict[str, str]  # by question


@dataclass(frozen=True)
class Judgment:
    """The two games of one question: the baseline stands first, then the model."""

    verdicts: tuple[str | None, str | None]
    said: tuple[str, str]


class Judgments(NamedTuple):
    """What one judge said of one model."""

    model: str
    judge: str
    baselines: tuple[str, ...]  # as far as the file tells
    games: dict[str, Judgment]  # by question


def question(row: Row) -> PromptGroup:
    """A row of question.jsonl, of either version; the category is the group's domain."""
    text = row["prompt"] if "prompt" in row else row["turns"][0]["content"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the prompt is no text")
    extra = {key: row[key] for key in ("cluster", "subcategory") if row.get(key)}
    return PromptGroup(_id(row), (Message("user", text),), (), row.get("category") or NO_CATEGORY, extra=extra)


def answers_in(path: str, revision: str | None) -> Answers:
    """A model's file of answers.

    Raises:
        FuserlError: it cannot be found or read, or holds two models or two answers to one question.
    """
    read = _each(path, revision, _answer, "answers")
    (model,) = _only({model for model, _, _ in read}, path, "answers")
    return Answers(model, {key: text for _, key, text in read})


def _answer(row: Row) -> tuple[str, str, str]:
    """(model, question, text)"""
    if "choices" in row:
        text = row["choices"][0]["turns"][0]["content"]
    else:
        content = row["messages"][-1]["content"]
        text = content["answer"] if isinstance(content, Mapping) else content
    if not isinstance(text, str):
        raise TypeError("the answer is no text")
    return str(row["model_id"] if "model_id" in row else row["model"]), _id(row), text


def judgments_in(path: str, revision: str | None) -> Judgments:
    """A file of judgments of one model by one judge; a game without a verdict stays one.

    Raises:
        FuserlError: as `answers_in`.
    """
    read = _each(path, revision, _judgment, "judgments")
    ((model, judge),) = _only({(model, judge) for (model, judge, _), _, _ in read}, path, "judgments")
    baselines = sorted({baseline for (_, _, baseline), _, _ in read if baseline})
    return Judgments(model, judge, tuple(baselines), {key: games for _, key, games in read})


def _judgment(row: Row) -> tuple[tuple[str, str, str | None], str, Judgment]:
    """((model, judge, baseline), question, games)"""
    games = list(row["games"])
    if len(games) != 2:
        raise ValueError(f"it has {len(games)} games, not 2")
    verdicts = [
        None if game is None or game.get("score") is None else verdict_of(f"[[{game['score']}]]") for game in games
    ]
    said = [_said(game) for game in games]
    baseline = row.get("baseline")
    named = (str(row["model"]), str(row["judge"]), None if baseline is None else str(baseline))
    return named, _id(row), Judgment((verdicts[0], verdicts[1]), (said[0], said[1]))


def _said(game: Any) -> str:
    told = (game or {}).get("judgment") or ""
    return str(told.get("answer") or "") if isinstance(told, Mapping) else str(told)


def _id(row: Row) -> str:
    return str(row["uid"] if "uid" in row else row["question_id"])


def _each(path: str, revision: str | None, read: Callable[[Row], tuple[Any, str, Any]], what: str) -> list[Any]:
    """Every row, read.

    Raises:
        FuserlError: a row is something else, or two are of one question; or there is none.
    """
    found: dict[str, Any] = {}
    for where, row in rows(path, None, None, revision):
        one = read_row(read, where, row, f"not one of Arena-Hard's {what}", "docs/judges.md says what its files hold")
        if one[1] in found:
            raise FuserlError(f"question `{one[1]}` appears twice", where=where, hint="take one of the rows out")
        found[one[1]] = one
    if not found:
        raise FuserlError(f"there are no {what}", where=path, hint="give another file")
    return list(found.values())


def _only(found: set[Any], path: str, what: str) -> set[Any]:
    """Raises: FuserlError: the file mixes models or judges."""
    if len(found) != 1:
        several = ", ".join(sorted(" by ".join(one) if isinstance(one, tuple) else one for one in found))
        raise FuserlError(f"the file holds {what} of {several}", where=path, hint="give a file of one")
    return found


def write_answers(folder: Path, answers: Answers, groups: Sequence[PromptGroup], styles: Mapping[str, Style]) -> Path:
    """model_answer/MODEL.jsonl below the folder."""

    def row(group: PromptGroup) -> dict[str, Any]:
        """One answer, in the fields of both versions."""
        text, look = answers.texts[group.id], styles[group.id].plain()
        return {
            **_names(group.id),
            "model": answers.model,
            "model_id": answers.model,
            "messages": [
                *({"role": message.role, "content": message.content} for message in group.prompt),
                {"role": "assistant", "content": {"answer": text}},
            ],
            "choices": [{"index": 0, "turns": [{"content": text, "token_len": look["token_len"]}]}],
            "metadata": look,
            "conv_metadata": look,
        }

    path = folder / "model_answer" / f"{file_name(answers.model)}.jsonl"
    return written(path, (row(group) for group in groups if group.id in answers.texts))


def write_judgments(folder: Path, judgments: Judgments, groups: Sequence[PromptGroup]) -> Path:
    """model_judgment/JUDGE/MODEL.jsonl below the folder. What was said is the end of it, as it was kept."""

    def row(group: PromptGroup) -> dict[str, Any]:
        """Both games of one answer."""
        one = judgments.games[group.id]
        told = zip(one.verdicts, one.said, strict=True)
        return {
            **_names(group.id),
            "category": group.domain,
            "model": judgments.model,
            "judge": judgments.judge,
            "baseline": group.extra.get("baseline"),
            "games": [{"score": verdict, "judgment": {"answer": said}} for verdict, said in told],
        }

    path = folder / "model_judgment" / file_name(judgments.judge) / f"{file_name(judgments.model)}.jsonl"
    return written(path, (row(group) for group in groups if group.id in judgments.games))


def _names(key: str) -> dict[str, str]:
    return {"uid": key, "question_id": key}

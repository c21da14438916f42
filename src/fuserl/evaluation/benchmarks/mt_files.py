"""Files of FastChat's MT-Bench, as its own scripts read and write them: answers, gold answers, judgments of single answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.judged import file_name, written
from fuserl.evaluation.benchmarks.questions import rows
from fuserl.records.hub import file_of

NONE = -1  # the score of an answer without a rating
GOLD = "give FastChat's data/mt_bench/reference_answer/gpt-4.jsonl as `references`"
SINGLE = "give a file like FastChat's model_judgment/gpt-4_single.jsonl"

Ratings = tuple[float | None, float | None]  # of both turns


class Judgments(NamedTuple):
    """What one judge said of one model's answers."""

    model: str
    judge: str
    ratings: dict[str, dict[int, float | None]]  # by question, by turn from 1


def gold_in(path: str) -> dict[str, list[str]]:
    """reference_answer/MODEL.jsonl: the gold answers of both turns by question.

    Raises:
        FuserlError: it cannot be found, or is something else.
    """
    found = {}
    for where, row in rows(str(file_of(path)), None, None, None):
        try:
            found[str(row["question_id"])] = [str(turn) for turn in row["choices"][0]["turns"]]
        except (KeyError, TypeError, IndexError) as error:
            raise FuserlError(f"the row holds no gold answers ({error!r})", where=where, hint=GOLD) from error
    return found


def judgments_in(path: str, model: str) -> Judgments:
    """model_judgment/JUDGE_single.jsonl, of one judge; it may hold many models.

    Args:
        model: whose ratings are wanted, where the file has several models.

    Raises:
        FuserlError: it cannot be found, is something else, or says nothing of the model.
    """
    read = []
    for where, row in rows(str(file_of(path)), None, None, None):
        try:
            judge = row["judge"][0] if isinstance(row["judge"], list) else row["judge"]
            score, turn = row["score"], int(row["turn"])
            if isinstance(score, bool) or not isinstance(score, int | float) or turn not in (1, 2):
                raise ValueError(f"score {score!r}, turn {turn}")
            read.append(
                (str(row["model"]), str(judge), str(row["question_id"]), turn, None if score == NONE else float(score))
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FuserlError(
                f"the row is no judgment of a single answer ({error!r})", where=where, hint=SINGLE
            ) from error
    models = sorted({one[0] for one in read})
    chosen = models[0] if len(models) == 1 else model
    ours = [one for one in read if one[0] == chosen]
    judges = sorted({one[1] for one in ours})
    if len(judges) != 1:
        what = (
            f"judgments by {', '.join(judges)}" if judges else f"nothing of `{model}`, but of {', '.join(models[:8])}"
        )
        raise FuserlError(f"the file holds {what}", where=path, hint="`name=MODEL` says whose ratings are wanted")
    found: dict[str, dict[int, float | None]] = {}
    for _, _, key, turn, score in ours:
        if turn in found.setdefault(key, {}):
            raise FuserlError(f"turn {turn} of question `{key}` is rated twice", where=path, hint="take one out")
        found[key][turn] = score
    return Judgments(chosen, judges[0], found)


def write_answers(folder: Path, model: str, answers: Mapping[str, Sequence[str]]) -> Path:
    """model_answer/MODEL.jsonl below the folder."""
    lines = (
        {"question_id": _id(key), "answer_id": key, "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}
        for key, turns in answers.items()
    )
    return written(folder / "model_answer" / f"{file_name(model)}.jsonl", lines)


def write_judgments(folder: Path, model: str, judge: str, said: Iterable[tuple[str, int, float | None, str]]) -> Path:
    """model_judgment/JUDGE_single.jsonl below the folder.

    Args:
        said: question, turn from 1, rating, the end of what the judge said.
    """
    lines = (
        {
            "question_id": _id(key),
            "model": model,
            "judge": [judge, "fuserl"],
            "judgment": words,
            "score": NONE if rating is None else rating,
            "turn": turn,
        }
        for key, turn, rating, words in said
    )
    return written(folder / "model_judgment" / f"{file_name(judge)}_single.jsonl", lines)


def _id(key: str) -> int | str:
    """As FastChat has it: a number where it is one."""
    return int(key) if key.isascii() and key.isdigit() else key

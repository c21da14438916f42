"""Rows of verifiable benchmarks as prompts: what is asked in which words, and where graders find what is right.

`form` is the text that a model is asked, with blanks in double braces; None asks the row's own text and nothing else,
for models that continue texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fuserl.records.rows import Needs, group_of
from fuserl.records.schema import Message, PromptGroup
from fuserl.records.splits import prompt_digest
from fuserl.rewards.answers import after

BLANK = re.compile(r"\{\{(\w+)\}\}")

Row = Mapping[str, Any]


def worded(form: str | None, plain: str, **texts: str) -> tuple[Message, ...]:
    """The user's turn: the form with its blanks filled, all at once.

    Raises:
        ValueError: the form has a blank that the row does not fill.
    """
    if form is None:
        return (Message("user", plain),)
    if strange := sorted(set(BLANK.findall(form)) - texts.keys()):
        raise ValueError(f"`form` has the blank `{strange[0]}`; there are {', '.join(texts)}")
    return (Message("user", BLANK.sub(lambda found: texts[found[1]], form).strip()),)


def gsm8k(row: Row, *, form: str | None) -> PromptGroup:
    """`question` and `answer`, which ends in `#### N`; the id is the row's, or made of the question."""
    question, answer = _text(row, "question"), _text(row, "answer")
    right = after(answer, marker="####")
    if right is None:
        raise ValueError("`answer` has no `####`")
    prompt = worded(form, question, question=question)
    return PromptGroup(_id(row, question), prompt, (), "math", answer, {"reference_answer": right})


def mathematics(row: Row, *, form: str | None, question: str, answer: str) -> PromptGroup:
    """Any set of problems with answers.

    Args:
        question, answer: columns; the answer may be a whole solution, of which the last box is read.
    """
    asked = _text(row, question)
    right = row[answer]
    extra = {key: row[key] for key in ("level", "subject", "type") if row.get(key) is not None}
    text = f"{right:g}" if isinstance(right, float) else str(right)
    return PromptGroup(_id(row, asked), worded(form, asked, question=asked), (), "math", text, extra)


def humaneval(row: Row, *, form: str | None) -> PromptGroup:
    """`task_id`, `prompt` (the beginning of a program), `test`, `entry_point`."""
    beginning = _text(row, "prompt")
    extra = {"test": _text(row, "test"), "entry_point": _text(row, "entry_point"), "beginning": beginning}
    prompt = worded(form, beginning, beginning=beginning, entry_point=extra["entry_point"])
    return PromptGroup(str(row["task_id"]), prompt, (), "code", None, extra)


def mbpp(row: Row, *, form: str | None) -> PromptGroup:
    """`task_id`, `prompt` (or `text`), `test_list` and `test_imports`."""
    task = str(row.get("prompt") or row["text"])
    tests = [str(test) for test in row["test_list"]]
    if not tests:
        raise ValueError("`test_list` is empty")
    extra = {"test_list": tests, "test_imports": list(row.get("test_imports") or [])}
    prompt = worded(form, task, task=task, tests="\n".join(tests))
    return PromptGroup(f"mbpp-{row['task_id']}", prompt, (), "code", None, extra)


def ifeval(row: Row) -> PromptGroup:
    """`key`, `prompt`, `instruction_id_list`, `kwargs`; the prompt says everything itself."""
    wanted = [{key: value for key, value in dict(one).items() if value is not None} for one in row["kwargs"]]
    names = [str(name) for name in row["instruction_id_list"]]
    if len(names) != len(wanted) or not names:
        raise ValueError("`instruction_id_list` and `kwargs` differ in length, or are empty")
    extra = {"instruction_id_list": names, "kwargs": wanted}
    return PromptGroup(f"ifeval-{row['key']}", (Message("user", _text(row, "prompt")),), (), "instruction", None, extra)


def alignbench(row: Row) -> PromptGroup:
    """`question_id`, `question`, `reference`, `category`."""
    asked, extra = _text(row, "question").strip(), {"category": str(row.get("category") or "")}
    prompt = (Message("user", asked),)
    return PromptGroup(f"alignbench-{row['question_id']}", prompt, (), "chinese", _text(row, "reference"), extra)


def own(row: Row) -> PromptGroup:
    """A row of any data set of ours, with or without responses: `prompt`, and what graders need beside it."""
    result = group_of(dict(row) | {"responses": []}, skip=False, fallback_id=_by_prompt, needs=Needs(responses=False))
    assert result.group is not None  # rows that are bad raise
    return result.group


def _by_prompt(prompt: tuple[Message, ...]) -> str:
    return f"prompt-{prompt_digest(prompt)}"


def _text(row: Row, column: str) -> str:
    if not isinstance(row[column], str) or not row[column].strip():
        raise ValueError(f"`{column}` is no text")
    return row[column]


def _id(row: Row, question: str) -> str:
    named = next((row[key] for key in ("id", "unique_id", "task_id") if row.get(key) is not None), None)
    return str(named) if named is not None else _by_prompt((Message("user", question),))

"""Where in a text the final answer stands: functions that configuration picks, each `text -> answer or None`.

Texts are written by models and may be long and hostile: every function takes time linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from fuserl.records.schema import PromptGroup

Answer = Callable[[str], str | None]

LONGEST = 2000  # characters of an answer that is looked for with its end
PARAGRAPH = 500  # characters of a last paragraph that are read
NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
SINGLE_BACKSLASH = re.compile(r'\\(?:\\|"|u[0-9a-fA-F]{4}|(?=[a-zA-Z]{2})|.)', re.DOTALL)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` that is closed.

    >>> boxed(r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    for start in (text.rfind("\\boxed{"), text.rfind("\\fbox{")):
        if start < 0:
            continue
        begin = text.index("{", start) + 1
        depth = 1
        for brace in BRACES.finditer(text, begin, begin + LONGEST):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[begin : brace.start()].strip() or None
    return None


def after(text: str, *, marker: str) -> str | None:
    """The rest of the line after the last `marker`.

    >>> after("half of 84 is 42" + chr(10) + "A: 42 clips", marker="A:")
    '42 clips'
    """
    _, found, rest = text.rpartition(marker)
    return (rest[: LONGEST * 2].strip().split("\n")[0][:LONGEST].strip() or None) if found else None


def json_field(text: str, *, field: str = "answer") -> str | None:
    r"""The value of the last `"field":` in a text; the JSON around it may be broken or cut.

    A backslash before two letters is taken for LaTeX's, which models forget to double.

    >>> json_field('{"reasoning": "...", "answer": "$\\frac{1}{2}$"}')
    '$\\frac{1}{2}$'
    >>> json_field('{"answer": 1,000 }')
    '1,000'
    """
    _, found, rest = text.rpartition(f'"{field}"')
    rest = rest.lstrip()
    if not found or not rest.startswith(":"):
        return None
    rest = rest[1:].lstrip()[: 2 * LONGEST]
    value = _decoded(SINGLE_BACKSLASH.sub(lambda part: "\\\\" if part[0] == "\\" else part[0], rest))
    if isinstance(value, list | dict):
        value = json.dumps(value)
    if isinstance(value, str):  # an empty one too: it is what was said
        return value[:LONGEST].strip()
    return rest.split("\n")[0].strip().rstrip("}`, ").strip('"')[:LONGEST].strip() or None  # as written, or broken


def last_number(text: str) -> str | None:
    """The last number.

    >>> last_number("84 / 2 = 42 clips.")
    '42'
    """
    found = NUMBER.findall(text[-LONGEST:])
    return found[-1] if found else None


def ending(text: str) -> str | None:
    """The last paragraph, as it is: what in it is the answer is left to the one who reads it."""
    return text[-LONGEST:].rstrip().rpartition("\n\n")[2][-PARAGRAPH:].strip() or None


def whole(text: str) -> str | None:
    """The text is the answer."""
    return text.strip()[:LONGEST] or None


def first_of(text: str, *, ways: Sequence[Answer]) -> str | None:
    """What the first way finds that finds anything."""
    return next((answer for way in ways if (answer := way(text)) is not None), None)


def gold(group: PromptGroup, *, field: str, answer: Answer | None = None) -> str | None:
    """A group's right answer.

    Args:
        field: of the group that holds it; `reference`, or one that the data has beside ours. `auto`: `reference_answer`
            if there is one, else the reference.
        answer: where in the field it stands, such as `after` with `####`; None: the last `#### ...` or box, or all of it.
    """
    if field == "auto":
        field = "reference" if group.extra.get("reference_answer") is None else "reference_answer"
    held: Any = group.reference if field == "reference" else group.extra.get(field)
    if held is None or isinstance(held, bool | list | dict):
        return None
    text = str(held)
    return answer(text) if answer else after(text, marker="####") or boxed(text) or whole(text)


def _decoded(text: str) -> Any:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None

"""From an answer to a program: which part of the text is code, and what the task puts before it."""

from __future__ import annotations

import re
from collections.abc import Callable

from fuserl.records.schema import PromptGroup, Response

Extract = Callable[[PromptGroup, Response], str]

FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3", "")


def whole(group: PromptGroup, response: Response) -> str:
    """The answer is the program."""
    return response.text


def last_block(group: PromptGroup, response: Response) -> str:
    """The last fenced block of Python; an answer without fences is the program."""
    return _blocks(response.text)[-1]


def first_block(group: PromptGroup, response: Response) -> str:
    """The first fenced block of Python; an answer without fences is the program."""
    return _blocks(response.text)[0]


def longest_block(group: PromptGroup, response: Response) -> str:
    """The longest fenced block of Python, the last of equals; an answer without fences is the program."""
    return max(reversed(_blocks(response.text)), key=len)


def completing(group: PromptGroup, response: Response, *, block: Extract = last_block) -> str:
    """HumanEval's form: the prompt is the beginning of a program, which the answer goes on with or writes anew.

    The response's field `form` says which: `body` goes on where the prompt ends, `full` has the function whole and needs
    from the prompt only its imports and helpers. Without the field, an answer that defines the entry point is `full`.
    """
    text = block(group, response)
    form = response.extra.get("form") or ("full" if _defines(text, group.extra.get("entry_point")) else "body")
    beginning = beginning_of(group)
    return f"{beginning}\n    pass\n\n{text}" if form == "full" else beginning + text


def auto(group: PromptGroup, response: Response) -> str:
    """`completing` where the group has an entry point that its beginning defines, else the last block."""
    begun = _defines(beginning_of(group), group.extra.get("entry_point"))
    said = "beginning" in group.extra or "```" not in group.prompt[-1].content
    return completing(group, response) if begun and said else last_block(group, response)


def beginning_of(group: PromptGroup) -> str:
    """What a program begins with: the group's field of that name, where the prompt says it in other words; else the prompt."""
    given = group.extra.get("beginning")
    return given if isinstance(given, str) else group.prompt[-1].content


def _blocks(text: str) -> list[str]:
    """Fenced blocks of Python, or of any language where none says that it is; the text itself where there is none.

    A fence that is never closed goes to the end: the answer was cut, or forgot it.
    """
    found = FENCE.findall(text)
    python = [code for info, code in found if (info.split() or [""])[0].lower() in PYTHON]
    return python or [code for _, code in found] or [text]


def _defines(text: str, name: object) -> bool:
    return isinstance(name, str) and re.search(rf"^(async )?def {re.escape(name)}\b", text, re.MULTILINE) is not None

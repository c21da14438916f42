"""What a page of docs/ tells its reader to type."""

from __future__ import annotations

import re
import shlex


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(page: str, language: str = "sh") -> list[str]:
    """The lines of those blocks, one command each, blank ones left out."""
    return [line for block in blocks(page, language) for line in block.splitlines() if line.strip()]


def words_of(command: str) -> tuple[str, list[str]]:
    """The verb and the overrides of a command."""
    program, verb, *overrides = shlex.split(command, comments=True)
    assert program == "fuserl"
    return verb, overrides

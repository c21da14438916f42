"""Where a group keeps its unit tests, and in which of the usual forms."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from fuserl.records.schema import PromptGroup
from fuserl.rewards.programs import beginning_of
from fuserl.rewards.trial import Calls, Case

Tests = Calls | tuple[Case, ...]


def humaneval(group: PromptGroup) -> Calls | None:
    """HumanEval's fields: `test` defines `check(candidate)`, `entry_point` names the function.

    The prompt, where it is Python, is the tests' setup: helpers that it defines are the task's, whatever a program makes
    of them.
    """
    test, entry = group.extra.get("test"), group.extra.get("entry_point")
    if not isinstance(test, str) or not isinstance(entry, str):
        return None
    beginning = f"{beginning_of(group)}\n    pass\n"
    return Calls(tests=test, setup=beginning if _parses(beginning) else "", entry_point=entry, check="check")


def mbpp(group: PromptGroup) -> Calls | None:
    """MBPP's fields: `test_list` holds assertions, `test_imports` what they need."""
    tests, imports = group.extra.get("test_list"), group.extra.get("test_imports") or []
    if not isinstance(tests, list) or not tests:
        return None
    text = "\n".join(map(str, tests))
    return Calls(tests=text, setup="\n".join(map(str, imports)), entry_point=_first_called(text))


def cases(group: PromptGroup) -> tuple[Case, ...] | None:
    """Input and output of a script, as JSON in `input_output` or in the reference.

    Either `{"inputs": [...], "outputs": [...]}` or `[{"input": ..., "output": ...}, ...]`.
    """
    found = _json(group.extra.get("input_output") or group.reference)
    if isinstance(found, Mapping):
        inputs, outputs = found.get("inputs"), found.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            return None
        found = [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    if not isinstance(found, list) or not found or not all(isinstance(row, Mapping) for row in found):
        return None
    pairs = [(row.get("input"), row.get("output")) for row in found]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        return None
    return tuple(Case(str(reads), str(prints)) for reads, prints in pairs)


def assertions(group: PromptGroup) -> Calls | None:
    """Python in the reference: assertions, or a function `check(candidate)` beside the field `entry_point`."""
    text, entry = group.reference, group.extra.get("entry_point")
    if not text or "assert" not in text or not _parses(text):
        return None
    if isinstance(entry, str) and "def check(" in text:
        return Calls(tests=text, entry_point=entry, check="check")
    return Calls(tests=text, entry_point=entry if isinstance(entry, str) else _first_called(text))


def auto(group: PromptGroup) -> Tests | None:
    """The first form that fits: `humaneval`, `mbpp`, `cases`, `assertions`."""
    return humaneval(group) or mbpp(group) or cases(group) or assertions(group)


def plain(tests: Tests | None) -> Any:
    """Tests as JSON."""
    return [asdict(case) for case in tests] if isinstance(tests, tuple) else asdict(tests) if tests else None


@lru_cache(1024)
def _first_called(text: str) -> str:
    """The function under test: the first called that Python does not have itself, or else the first called."""
    if not _parses(text):
        return ""
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = [call.id for call in calls if isinstance(call, ast.Name)]
    return next((name for name in names if not hasattr(builtins, name)), names[0] if names else "")


@lru_cache(1024)  # a group's responses ask the same
def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _json(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

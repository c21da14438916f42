"""Grading code by its unit tests, in a sandbox."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup
from fuserl.rewards import unit_tests
from fuserl.rewards.described import described, direct
from fuserl.rewards.parallel import in_parallel, number_of_workers
from fuserl.rewards.programs import Extract
from fuserl.rewards.protocol import Item, Score
from fuserl.rewards.sandbox import Cell, Limits, find
from fuserl.rewards.trial import Calls, Finding, Program, by_calls, by_cases
from fuserl.rewards.unit_tests import Tests
from fuserl.sources.protocol import Failure
from fuserl.terminal import say

PROTOCOL = 1  # of examiner and guest: to be raised when they would find otherwise on the same program
PAUSES = (0.0, 0.5, 2.0)  # seconds before each attempt to start a sandbox
TROUBLE = Finding("trouble")
REWARD = {"right": 1.0, "wrong": 0.0, "unknown": None}


class CodeScorer:
    """Runs an answer's program against the group's unit tests: `right` if all pass.

    A program that takes too much time, memory or output is `wrong`: that is its own doing. Tests that are missing or
    broken are `unknown`; a sandbox that fails is a `Failure`, tried again.

    Args:
        program: finds the program in an answer.
        tests: finds the tests in a group; None where it has none.
        imports: lines before every program, which answers often leave out.
        workers: programs that run at the same time; `auto`: one a core.
        allow_unsafe_code: run without walls where there is no sandbox.

    Raises:
        FuserlError: there is no sandbox and `allow_unsafe_code` is not said, or a limit is no positive number.
    """

    def __init__(
        self,
        *,
        program: Extract,
        tests: Callable[[PromptGroup], Tests | None],
        imports: Sequence[str],
        limits: Mapping[str, float],
        workers: int | str,
        allow_unsafe_code: bool,
        name: str = "code",
    ) -> None:
        self.name, self.imports = name, list(imports)
        self.program, self.tests = direct(program), direct(tests)
        self.limits = Limits.of(limits, f"`rewards.{name}.limits`")
        self.workers = number_of_workers(workers, f"`rewards.{name}.workers`")
        self.cell: Cell = find(allow_unsafe=allow_unsafe_code)
        self._check(name)
        if not self.cell.safe:
            say(
                "WARNING: there is no sandbox: programs written by models run with all your rights (allow_unsafe_code=true)"
            )

    def identity(self) -> Mapping[str, Any]:
        """How program and tests are found, the limits, the Python that runs them."""
        return {
            "program": described(self.program),
            "tests": described(self.tests),
            "imports": self.imports,
            "limits": asdict(self.limits),
            "python": platform.python_version(),
            "protocol": PROTOCOL,
        }

    def context(self, item: Item) -> Any:
        """The tests, and the program as it would run: both come from fields of the group and of the response."""
        return {"tests": unit_tests.plain(self.tests(item.group)), "form": item.response.extra.get("form")}

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Programs run side by side, each in a cell of its own."""
        return in_parallel(self._one, items, self.workers)

    def close(self) -> None:
        """Cells are given back as each program ends."""

    def _check(self, name: str) -> None:
        """Raises: FuserlError: under these limits, with these imports, not even a program of one line is right."""
        found = self._tried(self._program("def f(): return 1"), Calls(tests="assert f() == 1", entry_point="f"))
        if found.verdict != "right":
            raise FuserlError(
                f"a program of one line is not found right: {found.why}",
                where=f"`rewards.{name}.imports` and `rewards.{name}.limits`",
                hint="the imports must run with the standard library alone, within the limits",
            )

    def _program(self, text: str) -> Program:
        return Program(text, "\n".join(self.imports))

    def _one(self, item: Item) -> Score | Failure:
        tests = self.tests(item.group)
        if tests is None:
            return Score(item.key, None, "unknown", {"why": "the group has no unit tests"})
        program, found = self._program(self.program(item.group, item.response)), TROUBLE
        for pause in PAUSES:
            time.sleep(pause)
            found = self._tried(program, tests)
            if found.verdict != TROUBLE.verdict:
                return Score(item.key, REWARD[found.verdict], found.verdict, {"why": found.why} if found.why else {})
        return Failure(item.key, found.why, passing=True)

    def _tried(self, program: Program, tests: Tests) -> Finding:
        try:
            if isinstance(tests, Calls):
                return by_calls(program, tests, self.cell, self.limits)
            return by_cases(program, tests, self.cell, self.limits)
        except OSError as error:  # no process, no pipe, no file to be had just now
            return Finding(TROUBLE.verdict, f"the sandbox could not be started: {error}")

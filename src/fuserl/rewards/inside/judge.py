"""Runs unit tests against a program in another process, and says who passed.

Tests are ordinary Python. Names that they do not define themselves stand for calls to the guest; what comes back is a copy
of basic types, so `==` here is Python's own, whatever the program makes of it.
"""

from __future__ import annotations

import builtins
import json
import os
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from fuserl.rewards.inside import start
from fuserl.rewards.inside.wire import Closed, Garbled, Line, decode, encode


class Over(BaseException):
    """The program's process has ended, or talks nonsense: the tests cannot go on."""


class CannotTell(BaseException):
    """The tests ask something that no message can carry."""


class ProgramError(Exception):
    """An exception of the program that is no built-in one."""


class Asking:
    """The guest, seen from here."""

    def __init__(self, line: Line, tell_answered: Callable[[], object]) -> None:
        self.line, self.tell_answered = line, tell_answered
        self.answered = False  # to a call of a test
        self.over = self.cannot_tell = ""  # why; tests may swallow the exception

    def expect(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Over: none comes, or it is no message.
        """
        try:
            message = self.line.receive()
        except Closed:
            raise self.is_over("the program's process ended") from None
        except (Garbled, MemoryError) as error:
            raise self.is_over(f"the program's process talks nonsense: {error}") from None
        if not isinstance(message, dict):
            raise self.is_over("the program's process talks nonsense")
        return message

    def do(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """Have the guest do something; an exception of the program is raised here, changed arguments are changed here."""
        request = {
            "operation": operation,
            "arguments": [encode(value, self.keep) for value in arguments],
            "named": {name: encode(value, self.keep) for name, value in named.items()},
        }
        try:
            self.line.send(request)
        except Closed:
            raise self.is_over("the program's process ended") from None
        except Garbled as error:
            raise self.stuck(f"an argument is too large: {error}") from None
        message = self.expect()
        if operation == "call" and not self.answered:
            self.answered = True
            self.tell_answered()
        try:
            if "raised" in message:
                raise _error(message["raised"], may_stop=operation == "next")
            for index, after in message.get("changed", {}).items():
                _change(arguments[int(index)], decode(after, self.find))
            return decode(message["value"], self.find)
        except (Garbled, KeyError, IndexError, ValueError, RecursionError, MemoryError) as error:
            if getattr(error, "of_program", False):
                raise
            raise self.is_over(f"the program's process talks nonsense: {type(error).__name__}") from None

    def keep(self, value: Any) -> dict[str, Any]:
        """Only the guest's own objects may travel back."""
        if isinstance(value, Away):
            return object.__getattribute__(value, "_where")
        raise self.stuck(f"a test hands over a {type(value).__name__}")

    def find(self, message: dict[str, Any]) -> Away:
        """An object that stayed in the guest."""
        if set(message) != {"object"} or not isinstance(message["object"], int):
            raise Garbled("no value")
        return Away(self, message)

    def stuck(self, why: str) -> CannotTell:
        """Remember and return the exception."""
        self.cannot_tell = self.cannot_tell or why
        return CannotTell(why)

    def is_over(self, why: str) -> Over:
        """Remember and return the exception."""
        self.over = self.over or why
        return Over(why)


class Away:
    """An object of the program that cannot be copied: calls, attributes and members are asked for, equality never."""

    def __init__(self, asking: Asking, where: dict[str, Any]) -> None:
        self._asking, self._where = asking, where

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._asking.do("call", self, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._asking.do("attribute", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._asking.do("item", self, key)

    def __len__(self) -> int:
        return self._asking.do("length", self)

    def __bool__(self) -> bool:
        return self._asking.do("truth", self) is True

    def __iter__(self) -> Iterator[Any]:
        return self._asking.do("iterate", self)

    def __next__(self) -> Any:
        return self._asking.do("next", self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Away) and other._where != self._where:
            raise self._asking.stuck("a test compares two objects of the program's own classes")
        return isinstance(other, Away)

    def __hash__(self) -> int:
        return hash(str(self._where))


def _error(raised: Any, *, may_stop: bool = False) -> BaseException:
    """The built-in exception of that name, or ours.

    StopIteration is Python's own only where an iterator may say it: from a call, it would end `all(map(check, cases))`
    early, and well.
    """
    name, text = (
        str(part)[:300] for part in (raised if isinstance(raised, list) and len(raised) == 2 else ("", raised))
    )
    kind = getattr(builtins, name, None)
    stops = (StopIteration, StopAsyncIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and (may_stop or not issubclass(kind, stops)):
        with suppress(TypeError):  # those that take more than a text
            return _marked(kind(text))
    return _marked(ProgramError(f"{name}: {text}" if text else name))


def _marked(error: Exception) -> Exception:
    error.of_program = True  # type: ignore[attr-defined]
    return error


def _change(argument: Any, after: Any) -> None:
    """Give a test's argument the content that the call left in the guest's copy."""
    if type(after) is not type(argument):
        raise Garbled("an argument changed its type")
    if isinstance(argument, list | bytearray):
        argument[:] = after
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(after)


def _names(code: types.CodeType) -> set[str]:
    """All names that a piece of code may look up outside itself (attributes too; one too many does no harm)."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def judged(work: dict[str, Any], asking: Asking) -> tuple[str, str]:
    """Verdict and reason. `trouble` as verdict: the sandbox failed, not the program."""
    try:
        return _judged(work, asking)
    except Over:
        return "wrong", asking.over
    except CannotTell:
        return "unknown", asking.cannot_tell
    except BaseException as error:
        return _blame(error, asking, work["tests"])


def _judged(work: dict[str, Any], asking: Asking) -> tuple[str, str]:
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(work["setup"], "setup.py", "exec", dont_inherit=True), space)
        tests = compile(work["tests"], "tests.py", "exec", dont_inherit=True)
    except BaseException as error:
        return "unknown", f"the tests are broken: {_said(error)}"
    try:
        if "ready" not in asking.expect():
            return "trouble", "the program's process did not start"
    except Over:
        return "trouble", "the program's process did not start"
    loaded = asking.expect()
    if "raised" in loaded:
        return "wrong", _said(_error(loaded["raised"]))
    if not isinstance(loaded.get("names"), list):
        raise asking.is_over("the program's process talks nonsense")
    defined, entry = set(map(str, loaded["names"])), work["entry_point"]
    if entry and entry not in defined:
        return "wrong", f"the program does not define {entry}"
    foreign = (_names(tests) & defined) - set(space) - set(dir(builtins))
    for name in sorted(foreign | ({entry} if entry else set())):
        space[name] = asking.do("value", Away(asking, {"name": name}))
    exec(tests, space)
    if work["check"]:
        space[work["check"]](space[entry])
    return _after(asking)


def _after(asking: Asking) -> tuple[str, str]:
    """Nothing was raised; but tests with a bare `except` may have swallowed why they should have stopped."""
    if asking.over:
        return "wrong", asking.over
    if asking.cannot_tell:
        return "unknown", asking.cannot_tell
    return ("right", "") if asking.answered else ("unknown", "the tests call nothing of the program")


def _blame(error: BaseException, asking: Asking, tests: str) -> tuple[str, str]:
    if getattr(error, "of_program", False) or isinstance(error, AssertionError | NameError):
        return "wrong", f"{_said(error)}{_where(error, tests)}"
    if isinstance(error, ImportError) or not asking.answered:
        return "unknown", f"the tests are broken: {_said(error)}"
    return "wrong", f"the tests cannot use what came back: {_said(error)}"


def _said(error: BaseException) -> str:
    kind = "" if isinstance(error, ProgramError) else type(error).__name__
    return ": ".join(filter(None, (kind, str(error))))[:300]


def _where(error: BaseException, tests: str) -> str:
    """The line of the tests that failed."""
    trace, number = error.__traceback__, 0
    while trace:
        number = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "tests.py" else number
        trace = trace.tb_next
    line = tests.splitlines()[number - 1].strip() if number else ""
    return f" in `{line[:200]}`" if line else ""


def main(descriptor: int, channel: int) -> None:
    """The guest is at `channel`, the job in the file `descriptor`, whoever wants the verdict at standard output."""
    wanted = start.away(1)
    os.write(wanted, b"ready\n")
    work = start.job(descriptor)
    verdict, why = judged(work, Asking(Line(channel), lambda: os.write(wanted, b"answered\n")))
    os.write(wanted, json.dumps({"verdict": verdict, "why": why}).encode() + b"\n")
    os._exit(0)

"""Runs unit tests against a program in another process, and says who passed.

Tests are ordinary Python. Names that they do not define themselves stand for calls to the guest; what comes back is a copy
of basic types, so `==` here is Python's own, whatever the program makes of it.
"""

from __future__ import annotations

import builtins
import os
from types import CodeType

from fuserl.rewards.inside import start
from fuserl.rewards.inside.wire import Closed, Garbled, Kept, Line, decode, encode

NONSENSE = "the program's process talks nonsense"


class Over(BaseException):
    """The program's process has ended, or talks nonsense: the tests cannot go on."""


class CannotTell(BaseException):
    """The tests ask something that no message can carry."""


class ProgramError(Exception):
    """An exception of the program that is no built-in one."""


class Asking(Kept):
    """The guest, seen from here."""

    def __init__(self, line: Line, wanted: int) -> None:
        self.line, self.wanted = line, wanted
        self.answered = False  # to a call of a test; told at once to whoever wants the verdict, at `wanted`
        self.over = self.cannot_tell = ""  # why; tests may swallow the exception

    def expect(self, kinds: dict[str, int]) -> list:
        """The next message: a list that begins with its kind.

        Args:
            kinds: those that may come, and how long each is.

        Raises:
            Over: none comes, or another.
        """
        try:
            message = decode(self.line.receive(), self)
        except Closed:
            raise self.is_over("the program's process ended") from None
        except (Garbled, MemoryError) as error:
            raise self.is_over(f"{NONSENSE}: {error}") from None
        if not isinstance(message, list) or not message or kinds.get(str(message[0])) != len(message):
            raise self.is_over(NONSENSE)
        return message

    def do(self, operation: str, *arguments, **named):
        """Have the guest do something; an exception of the program is raised here, changed arguments are changed here."""
        try:
            self.line.send(encode({"operation": operation, "arguments": list(arguments), "named": named}, self))
        except Closed:
            raise self.is_over("the program's process ended") from None
        except Garbled as error:
            raise self.stuck(f"a test hands over {error}") from None
        kind, *content = self.expect({"value": 3, "raised": 3})
        if operation == "call" and not self.answered:
            self.answered = True
            os.write(self.wanted, b"answered\n")
        if kind == "raised":
            raise _error(*map(str, content), may_stop=operation == "next")
        value, changed = content
        try:
            for number, after in changed.items():
                _change(arguments[number], after)
        except Exception as error:  # no such argument, of another type, ...
            raise self.is_over(f"{NONSENSE}: {type(error).__name__}") from None
        return value

    def number(self, value: object) -> int:
        """Only the guest's own objects may travel back."""
        if isinstance(value, Away):
            return object.__getattribute__(value, "_number")
        raise Garbled(f"a {type(value).__name__}")

    def kept(self, number: int) -> object:
        """An object that stayed in the guest."""
        return Away(self, number)

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

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking, self._number = asking, number

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._asking.do("call", self, *arguments, **named)

    def __getattr__(self, name: str) -> object:
        return self._asking.do("attribute", self, name)

    def __getitem__(self, key: object) -> object:
        return self._asking.do("item", self, key)

    def __len__(self) -> int:
        return self._asking.do("length", self)

    def __bool__(self) -> bool:
        return self._asking.do("truth", self) is True

    def __iter__(self) -> object:
        return self._asking.do("iterate", self)

    def __next__(self) -> object:
        return self._asking.do("next", self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Away) and other is not self:
            raise self._asking.stuck("a test compares two objects of the program's own classes")
        return other is self

    def __hash__(self) -> int:
        return id(self)


def _error(name: str, text: str, *, may_stop: bool = False) -> BaseException:
    """The built-in exception of that name, or ours.

    StopIteration is Python's own only where an iterator may say it: from a call, it would end `all(map(check, cases))`
    early, and well.
    """
    name, text = name[:100], text[:300]
    kind = getattr(builtins, name, None)
    stops = (StopIteration, StopAsyncIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and (may_stop or not issubclass(kind, stops)):
        try:
            return _marked(kind(text))
        except TypeError:  # one that takes more than a text
            pass
    return _marked(ProgramError(f"{name}: {text}" if text else name))


def _marked(error: Exception) -> Exception:
    error.of_program = True  # type: ignore[attr-defined]
    return error


def _change(argument: object, after: object) -> None:
    """Give a test's argument the content that the call left in the guest's copy."""
    if type(after) is not type(argument):
        raise TypeError
    if isinstance(argument, list | bytearray):
        argument[:] = after  # type: ignore[call-overload]
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(after)  # type: ignore[call-overload]


def _names(code: CodeType) -> set[str]:
    """All names that a piece of code may look up outside itself (attributes too; one too many does no harm)."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def examined(work: dict, asking: Asking) -> tuple[str, str]:
    """Verdict and reason. `trouble` as verdict: the sandbox failed, not the program."""
    try:
        return _examined(work, asking)
    except Over:
        return "wrong", asking.over
    except CannotTell:
        return "unknown", asking.cannot_tell
    except BaseException as error:
        return _blame(error, asking, work["tests"])


def _examined(work: dict, asking: Asking) -> tuple[str, str]:
    space: dict = {"__name__": "tests"}
    try:
        exec(compile(work["setup"], "setup.py", "exec", dont_inherit=True), space)
        tests = compile(work["tests"], "tests.py", "exec", dont_inherit=True)
    except BaseException as error:
        return "unknown", f"the tests are broken: {_said(error)}"
    try:
        asking.expect({"ready": 1})
    except Over:
        return "trouble", "the program's process did not start"
    kind, *content = asking.expect({"names": 2, "raised": 3})
    if kind == "raised":
        return "wrong", _said(_error(*map(str, content)))
    if not isinstance(content[0], list):
        raise asking.is_over(NONSENSE)
    defined, entry = set(map(str, content[0])), work["entry_point"]
    if entry and entry not in defined:
        return "wrong", f"the program does not define {entry}"
    foreign = (_names(tests) & defined) - set(space) - set(dir(builtins))
    for name in sorted(foreign | ({entry} if entry else set())):
        space[name] = asking.do("name", name)
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
    verdict, why = examined(work, Asking(Line(channel), wanted))
    os.write(wanted, f"={verdict} {' '.join(why.split())}\n".encode(errors="replace"))
    os._exit(0)

"""Runs a program and answers calls to what it defines. Everything it says may be a lie; the examiner knows that."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType

from fuserl.rewards.inside import start
from fuserl.rewards.inside.wire import Closed, Garbled, Kept, Line, decode, encode

CHANGEABLE = (list, dict, set, bytearray)  # arguments that a call may change in place
OPERATIONS = {
    "call": lambda function, *arguments, **named: function(*arguments, **named),
    "attribute": getattr,
    "item": lambda value, key: value[key],
    "length": len,
    "truth": bool,
    "iterate": iter,
    "next": next,
}


class Guest(Kept):
    """A program, its names, and the objects of its own that the examiner has been told of."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.told = module, []

    def number(self, value: object) -> int:
        """A new one each time: that two are the same is not said."""
        self.told.append(value)
        return len(self.told) - 1

    def kept(self, number: int) -> object:
        """One that the examiner was told of."""
        return self.told[number]

    def answer(self, request: bytes) -> bytes:
        """Do what is asked: an operation on copies of its arguments, whose changes are told too."""
        asked = decode(request, self)
        assert isinstance(asked, dict)
        if asked["operation"] == "name":
            return encode(["value", self.module.__dict__[asked["arguments"][0]], {}], self)
        arguments = asked["arguments"]
        before = {n: encode(one, self) for n, one in enumerate(arguments) if isinstance(one, CHANGEABLE)}
        value = OPERATIONS[asked["operation"]](*arguments, **asked["named"])
        changed = {n: arguments[n] for n, was in before.items() if encode(arguments[n], self) != was}
        return encode(["value", value, changed], self)


def prepared(work: dict, name: str) -> ModuleType:
    """A module of this name with the job's imports done; interactive Python's names are there too."""
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    sys.argv = ["program"]
    module = sys.modules[name] = ModuleType(name)
    exec(work["imports"], module.__dict__)
    return module


def run(work: dict, module: ModuleType) -> None:
    """Run the job's program in its module."""
    exec(compile(work["program"], "program.py", "exec", dont_inherit=True), module.__dict__)


def raised(error: BaseException) -> bytes:
    """An exception as a message; its text may itself be a trap."""
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    return encode(["raised", type(error).__name__, text], Kept())


def serve(line: Line, work: dict) -> None:
    """Load the program, say what it defines, answer until nobody asks."""
    guest = Guest(prepared(work, "program"))
    line.send(encode(["ready"], guest))
    try:
        run(work, guest.module)
        reply = encode(["names", [name for name in guest.module.__dict__ if isinstance(name, str)]], guest)
    except BaseException as error:
        line.send(raised(error))
        return
    while True:
        line.send(reply)
        request = line.receive()
        try:
            reply = guest.answer(request)
        except BaseException as error:
            reply = raised(error)


def main(descriptor: int) -> None:
    """The examiner is at standard input; the job lies in the file `descriptor`."""
    work = start.job(descriptor)
    try:
        serve(Line(start.away(0)), work)
    except (Closed, Garbled):
        return

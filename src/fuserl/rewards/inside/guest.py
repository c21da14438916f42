"""Runs a program and answers calls to what it defines. Everything it says may be a lie; the judge knows that."""

from __future__ import annotations

import builtins
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from fuserl.rewards.inside import start
from fuserl.rewards.inside.wire import Closed, Garbled, Line, decode, encode

CHANGEABLE = (list, dict, set, bytearray)  # arguments that a call may change in place
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **named: function(*arguments, **named),
    "value": lambda value: value,
    "attribute": getattr,
    "item": operator.getitem,
    "length": len,
    "truth": bool,
    "iterate": iter,
    "next": next,
}


class Guest:
    """A program, its names, and the objects of its own that the judge has been told of."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.kept = module, []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked: an operation on decoded arguments, whose changes are told too."""
        arguments = [decode(value, self.find) for value in request["arguments"]]
        named = {name: decode(value, self.find) for name, value in request.get("named", {}).items()}
        value = OPERATIONS[request["operation"]](*arguments, **named)
        changed = {
            str(index): after
            for index, argument in enumerate(arguments)
            if isinstance(argument, CHANGEABLE)
            and (after := encode(argument, self.keep)) != request["arguments"][index]
        }
        return {"value": encode(value, self.keep), "changed": changed}

    def keep(self, value: Any) -> dict[str, Any]:
        """A number for an object that cannot be copied."""
        self.kept.append(value)
        return {"object": len(self.kept) - 1}

    def find(self, message: dict[str, Any]) -> Any:
        """The object of a number, or what a name stands for."""
        return self.module.__dict__[message["name"]] if "name" in message else self.kept[message["object"]]


def prepared(work: dict[str, Any], name: str) -> types.ModuleType:
    """A module of this name with the job's imports done; interactive Python's names are there too."""
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    sys.argv = ["program"]
    module = sys.modules[name] = types.ModuleType(name)
    exec(work["imports"], module.__dict__)
    return module


def run(work: dict[str, Any], module: types.ModuleType) -> None:
    """Run the job's program in its module."""
    exec(compile(work["program"], "program.py", "exec", dont_inherit=True), module.__dict__)


def told(error: BaseException) -> dict[str, Any]:
    """An exception as a message; its text may itself be a trap."""
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    return {"raised": [type(error).__name__, text]}


def serve(line: Line, work: dict[str, Any]) -> None:
    """Load the program, say what it defines, answer until nobody asks."""
    guest = Guest(prepared(work, "program"))
    line.send({"ready": True})
    try:
        run(work, guest.module)
        reply = {"names": [name for name in guest.module.__dict__ if isinstance(name, str)]}
    except BaseException as error:
        line.send(told(error))
        return
    while True:
        line.send(reply)
        request = line.receive()
        try:
            reply = guest.answer(request)
        except BaseException as error:
            reply = told(error)


def main(descriptor: int) -> None:
    """The judge is at standard input; the job lies in the file `descriptor`."""
    work = start.job(descriptor)
    try:
        serve(Line(start.away(0)), work)
    except (Closed, Garbled):
        return

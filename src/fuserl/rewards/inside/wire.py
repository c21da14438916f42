"""Values between two processes that do not trust each other: JSON lines, nothing that runs on arrival.

None, bool, int, finite and infinite float, str and list are themselves; everything else is an object with one key that
says what it is. What cannot be copied (a function, an instance of the program's own class, an iterator) stays where it is
and travels as a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

LARGEST = 8 << 20  # bytes of one message
DEEPEST = 200  # levels of nesting
SMALL = 1 << 53  # integers from here on travel in hexadecimal: decimal has a limit of digits


class Closed(Exception):
    """The other side is gone."""


class Garbled(Exception):
    """The other side said something that is no message, or too much."""


class Line:
    """A channel of JSON lines over a file descriptor, both ways."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._rest = descriptor, b""

    def send(self, message: Any) -> None:
        """Write a message whole.

        Raises:
            Closed: nobody reads.
            Garbled: it is too large.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LARGEST:
            raise Garbled(f"a message of {len(line)} bytes")
        try:
            while line:
                line = line[os.write(self.descriptor, line) :]
        except OSError as error:
            raise Closed from error

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            Closed: none will come.
            Garbled: what came is none, or too large.
        """
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            if size > LARGEST:
                raise Garbled(f"more than {LARGEST} bytes without an end")
            try:
                part = os.read(self.descriptor, 1 << 16)
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            parts.append(part)
            size += len(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Garbled(f"no message ({type(error).__name__})") from error


def encode(value: Any, keep: Callable[[Any], dict[str, Any]], depth: int = 0) -> Any:
    """A value as JSON. Subclasses of the basic types travel as what they extend: no method of theirs survives.

    Args:
        keep: says what travels for a value that cannot be copied.
    """
    if depth > DEEPEST:
        raise RecursionError("nested too deeply")
    for kinds, written in WRITTEN:
        if isinstance(value, kinds):
            return written(value, lambda part: encode(part, keep, depth + 1))
    exact = EXACT.get(f"{type(value).__module__}.{type(value).__qualname__}")
    return {exact: str(value)} if exact else keep(value)


def decode(message: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    """A value from JSON.

    Args:
        find: what a number stands for.

    Raises:
        Garbled: it is no value.
    """
    if isinstance(message, list):
        return [decode(part, find) for part in message]
    if not isinstance(message, dict):
        return message
    if len(message) != 1:
        return find(message)
    ((kind, content),) = message.items()
    try:
        return READ[kind](content, lambda part: decode(part, find)) if kind in READ else find(message)
    except Garbled:
        raise
    except Exception as error:  # unhashable members, no pairs, no digits, ...
        raise Garbled(f"no {kind} ({type(error).__name__})") from error


def _integer(value: int, _: Any) -> Any:
    plain = int(value)
    return plain if abs(plain) < SMALL else {"int": hex(plain)}


def _fraction(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _members(kind: str) -> Callable[[Any, Any], Any]:
    return lambda value, part: {kind: [part(member) for member in value]}


# The first that fits is used: bool before int, frozenset beside set.
WRITTEN: tuple[tuple[Any, Callable[[Any, Any], Any]], ...] = (
    ((type(None), bool), lambda value, _: value),
    (int, _integer),
    (float, lambda value, _: float(value)),
    (str, lambda value, _: str.__str__(value)),
    (list, lambda value, part: [part(member) for member in value]),
    (tuple, _members("tuple")),
    (dict, lambda value, part: {"dict": [[part(key), part(item)] for key, item in dict.items(value)]}),
    (set, _members("set")),
    (frozenset, _members("frozenset")),
    (bytes, lambda value, _: {"bytes": value.hex()}),
    (bytearray, lambda value, _: {"bytearray": value.hex()}),
    (complex, lambda value, _: {"complex": [value.real, value.imag]}),
    (range, lambda value, part: {"range": [part(value.start), part(value.stop), part(value.step)]}),
)
EXACT = {"fractions.Fraction": "fraction", "decimal.Decimal": "decimal"}  # by name: importing them takes milliseconds
READ: dict[str, Callable[[Any, Any], Any]] = {
    "int": lambda content, _: int(content, 16),
    "tuple": lambda content, part: tuple(part(member) for member in content),
    "dict": lambda content, part: {part(key): part(item) for key, item in content},
    "set": lambda content, part: {part(member) for member in content},
    "frozenset": lambda content, part: frozenset(part(member) for member in content),
    "bytes": lambda content, _: bytes.fromhex(content),
    "bytearray": lambda content, _: bytearray.fromhex(content),
    "complex": lambda content, _: complex(float(content[0]), float(content[1])),
    "range": lambda content, part: range(*(part(number) for number in content)),
    "fraction": lambda content, _: _fraction(content),
    "decimal": lambda content, _: _decimal(content),
}

"""Values between two processes that do not trust each other: bytes that say type and length; nothing runs on arrival.

    N T F                None, True, False
    i<hex>; f<hex>;      int, float            c<hex>;<hex>;   complex
    s<n>:<utf-8>         str                   b<n>: B<n>:     bytes, bytearray
    l<n>: t<n>: S<n>: Z<n>:  so many values    list, tuple, set, frozenset
    d<n>:                so many pairs: dict   r<3 values>     range
    q<n>: m<n>:          a fraction, a decimal, as text
    k<hex>;              an object that stays where it is: a function, an instance of the program's own class, ...

Not JSON, which would double a process's start: these modules import nothing that Python has not loaded anyway.
"""

from __future__ import annotations

import os

LARGEST = 8 << 20  # bytes of one message
DEEPEST = 200  # levels of nesting


class Closed(Exception):
    """The other side is gone."""


class Garbled(Exception):
    """The other side said something that is no message, or too much."""


class Kept:
    """Objects that cannot be copied, by number. This one keeps none."""

    def number(self, value: object) -> int:
        """The number under which an object is kept.

        Raises:
            Garbled: it cannot be.
        """
        raise Garbled(f"a {type(value).__name__}")

    def kept(self, number: int) -> object:
        """What a number stands for."""
        raise Garbled(f"object {number}")


class Line:
    """A channel of messages over a file descriptor, both ways: eight hexadecimal digits of length, then a value."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def send(self, message: bytes) -> None:
        """Write a value that is already bytes.

        Raises:
            Closed: nobody reads.
            Garbled: it is too large.
        """
        if len(message) > LARGEST:
            raise Garbled(f"{len(message)} bytes")
        left = memoryview(b"%08x" % len(message) + message)
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            raise Closed from error

    def receive(self) -> bytes:
        """Wait for a value, as bytes.

        Raises:
            Closed: none will come.
            Garbled: what came is none, or too large.
        """
        try:
            size = int(self._read(8), 16)
        except ValueError:
            raise Garbled("no message") from None
        if not 0 <= size <= LARGEST:
            raise Garbled(f"{size} bytes")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.read(self.descriptor, min(size, 1 << 20))
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def encode(value: object, objects: Kept, depth: int = 0) -> bytes:
    """A value as bytes. Subclasses of the basic types travel as what they extend: no method of theirs survives.

    Raises:
        RecursionError: it is nested too deeply, or in itself.
        Garbled: it can neither be copied nor kept.
    """
    if depth > DEEPEST:
        raise RecursionError("nested too deeply")
    if value is None or value is True or value is False:
        return b"N" if value is None else b"T" if value else b"F"
    if isinstance(value, int):
        return b"i%x;" % int(value)
    if isinstance(value, float):
        return b"f%s;" % float.hex(value).encode()
    for kind, letter in TEXTS:
        if isinstance(value, kind):
            return _sized(letter, str.encode(value, "utf-8", "surrogatepass") if kind is str else bytes(value))
    if isinstance(value, dict):
        pairs = [encode(part, objects, depth + 1) for pair in dict.items(value) for part in pair]
        return b"d%d:" % (len(pairs) // 2) + b"".join(pairs)
    for kind, letter in MANY:
        if isinstance(value, kind):
            members = [encode(member, objects, depth + 1) for member in kind.__iter__(value)]
            return b"%s%d:" % (letter, len(members)) + b"".join(members)
    return _rare(value, objects)


def _rare(value: object, objects: Kept) -> bytes:
    if isinstance(value, range):
        return b"r" + b"".join(encode(number, objects) for number in (value.start, value.stop, value.step))
    if isinstance(value, complex):
        return b"c%s;%s;" % (float.hex(value.real).encode(), float.hex(value.imag).encode())
    exact = EXACT.get(f"{type(value).__module__}.{type(value).__qualname__}")
    return _sized(exact, str(value).encode()) if exact else b"k%x;" % objects.number(value)


def _sized(letter: bytes, content: bytes) -> bytes:
    return b"%s%d:" % (letter, len(content)) + content


TEXTS = ((str, b"s"), (bytes, b"b"), (bytearray, b"B"))
MANY = ((list, b"l"), (tuple, b"t"), (set, b"S"), (frozenset, b"Z"))
EXACT = {"fractions.Fraction": b"q", "decimal.Decimal": b"m"}  # by name: to import them takes milliseconds


def decode(message: bytes, objects: Kept) -> object:
    """A value from bytes.

    Raises:
        Garbled: it is none.
    """
    reader = Reader(message, objects)
    try:
        value = reader.value()
    except Garbled:
        raise
    except (Exception, RecursionError) as error:  # unhashable members, no digits, nested too deeply, no memory, ...
        raise Garbled(type(error).__name__) from None
    if reader.place != len(message):
        raise Garbled("more than one value")
    return value


class Reader:
    """Values from bytes, one after the other."""

    def __init__(self, message: bytes, objects: Kept) -> None:
        self.message, self.objects, self.place = message, objects, 0

    def value(self) -> object:
        """The next value."""
        letter = self.message[self.place : self.place + 1]
        self.place += 1
        if letter in PLAIN:
            return PLAIN[letter]
        return READ[letter](self)

    def until(self, end: bytes) -> bytes:
        """What stands before the next `end`."""
        stop = self.message.index(end, self.place)
        found, self.place = self.message[self.place : stop], stop + 1
        return found

    def number(self) -> int:
        """Hexadecimal."""
        return int(self.until(b";"), 16)

    def real(self) -> float:
        """Hexadecimal too."""
        return float.fromhex(self.until(b";").decode())

    def sized(self) -> bytes:
        """As many bytes as a number says."""
        size = int(self.until(b":"))
        found = self.message[self.place : self.place + size]
        if size < 0 or len(found) != size:
            raise Garbled("cut")
        self.place += size
        return found

    def many(self) -> list[object]:
        """As many values as a number says."""
        return [self.value() for _ in range(int(self.until(b":")))]


PLAIN = {b"N": None, b"T": True, b"F": False}
READ = {
    b"i": Reader.number,
    b"f": Reader.real,
    b"c": lambda reader: complex(reader.real(), reader.real()),
    b"s": lambda reader: reader.sized().decode("utf-8", "surrogatepass"),
    b"b": Reader.sized,
    b"B": lambda reader: bytearray(reader.sized()),
    b"l": Reader.many,
    b"t": lambda reader: tuple(reader.many()),
    b"S": lambda reader: set(reader.many()),
    b"Z": lambda reader: frozenset(reader.many()),
    b"d": lambda reader: {reader.value(): reader.value() for _ in range(int(reader.until(b":")))},
    b"r": lambda reader: range(reader.value(), reader.value(), reader.value()),
    b"q": lambda reader: _exact("fractions", "Fraction", reader.sized()),
    b"m": lambda reader: _exact("decimal", "Decimal", reader.sized()),
    b"k": lambda reader: reader.objects.kept(reader.number()),
}


def _exact(module: str, name: str, text: bytes) -> object:
    return getattr(__import__(module), name)(text.decode())

"""What a long verb has already paid for: an append-only file of answers by key, and one process at a time in a folder.

A journal is JSON lines, `{"key": ..., ..., "crc32": ...}`; the last is a checksum of the rest, so that a damaged record is
told and never taken for an answer (lines that were written before there were checksums are taken as they are). A line is written whole and at once, so a process that is killed leaves at
most one torn line, at the end, which the next one cuts off. The first record of a key stays; nothing is overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fuserl.errors import FuserlError
from fuserl.records.places import Filling, Places

BLOCK = 1 << 24  # bytes searched at a time for the end of the last whole line
READ = 1 << 14  # bytes read at a time of a record
SUM = b', "crc32": "%08x"}'  # the end of a line
SUM_BYTES, SUM_FIXED = len(SUM % 0), 14  # all of it, and those that are the same in every line


class Journal:
    """Records by key, on disk; in memory only where each lies (24 bytes a record).

    One process writes; hold the folder's lock. `flush` gives every record to the operating system at once, so SIGKILL
    loses none; `close` also waits for the disk.

    Raises:
        FuserlError: the file cannot be read or written, or a line in it is no record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._places = Places()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            self._end = self._cut_torn_line()
            self._index()
        except OSError as error:
            raise FuserlError(
                f"the journal cannot be opened: {error.strerror or error}",
                where=str(self.path),
                hint="give a folder that can be written with `output=DIR`",
            ) from error

    def __contains__(self, key: str) -> bool:
        return self._places.find(key) is not None

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Keys, in the order in which they came, read from the file."""
        for offset, key in self._keys():
            if offset >= self._end:
                return
            if self._places.find(key.decode()) == offset:
                yield key.decode()

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The record of a key, without the key.

        Raises:
            KeyError: it has none.
        """
        record = self.get(key)
        if record is None:
            raise KeyError(key)
        return record

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, without the key; None where it has none.

        Raises:
            FuserlError: its line is broken.
        """
        offset = self._places.find(key)
        if offset is None:
            return None
        try:
            record = json.loads(checked(self._line(offset)))
            if record.pop("key") != key or "crc32" in record:
                raise ValueError("its key or its checksum was changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken(error, f"{self.path}, byte {offset}") from error
        return record

    def add(self, key: str, record: Mapping[str, Any]) -> bool:
        """Keep a record; False where the key has one already, which stays.

        Raises:
            FuserlError: it cannot be written, because the disk is full, say.
        """
        if key in self:
            return False
        line = json.dumps({"key": key} | dict(record) | {"key": key}, default=str).encode()
        line = line[:-1] + SUM % zlib.crc32(line) + b"\n"
        try:
            written = self._file.write(line)
            while written < len(line):  # a disk that is nearly full takes a part
                written += self._file.write(line[written:])
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._end)
            raise FuserlError(
                f"the journal cannot be written: {error.strerror or error}",
                where=str(self.path),
                hint="make room and run the same command again; what was written before is kept",
            ) from error
        self._places.add(key, self._end)
        self._end += len(line)
        return True

    def close(self) -> None:
        """Wait until the disk has it all."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> int:
        """Bytes up to the end of the last whole line, which the file then ends with."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            found = os.pread(self._file.fileno(), end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file.fileno(), end)
        return end

    def _index(self) -> None:
        found = Filling()
        for offset, key in self._keys():
            found.add(key, offset)
        self._places.add_all(found)

    def _keys(self) -> Iterator[tuple[int, bytes]]:
        """(where its line begins, key) of every line."""
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    key = _key_of(line)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise self._broken(error, f"{self.path}, line {number + 1}") from error
                yield offset, key
                offset += len(line)

    def _line(self, offset: int) -> bytes:
        """The bytes from an offset to the end of its line."""
        parts: list[bytes] = []
        while not parts or (parts[-1] and b"\n" not in parts[-1]):
            parts.append(os.pread(self._file.fileno(), READ, offset + sum(map(len, parts))))
        return b"".join(parts).split(b"\n", 1)[0]

    @staticmethod
    def _broken(error: Exception, where: str) -> FuserlError:
        return FuserlError(
            f"a line is no record of a journal ({error!r})",
            where=where,
            hint="take the line out; what it held will be asked again",
        )


def checked(line: bytes) -> bytes:
    """A record's line, without its end, without its checksum; one that has none (an older one's) as it is.

    Raises:
        ValueError: it is not what was written.
    """
    rest, end = line[:-SUM_BYTES] + b"}", line[-SUM_BYTES:]
    alike = sum(one == other for one, other in zip(end, SUM % 0, strict=False))
    if alike < SUM_FIXED - 2:
        return line
    if end != SUM % zlib.crc32(rest):
        raise ValueError("it was changed after it was written: its checksum does not fit")
    return rest


def _key_of(line: bytes) -> bytes:
    """Our own lines begin with the key: no need to parse a long answer, unless the key has something escaped."""
    if line.startswith(b'{"key": "'):
        key = line[9 : line.index(b'"', 9)]
        if b"\\" not in key:
            key.decode()  # a ValueError where it is no text
            return key
    return json.loads(line)["key"].encode()


_held: set[TextIO] = set()


def _let_go() -> None:
    """A fork, as a loader's process is one, has the open file too, and would hold the folder after its parent was killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class BusyFolder(FuserlError):
    """Another process holds the folder; whoever can wait for it may."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder: two processes that write one folder would destroy each other's work.

    Raises:
        BusyFolder: another process holds it.
        FuserlError: it cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise FuserlError(
            f"the output folder cannot be written: {error.strerror or error}",
            where=str(path),
            hint="give another one with `output=DIR`",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyFolder(
                "another process is working in this folder",
                where=str(path),
                hint="wait for it, or give another folder with `output=DIR`",
            ) from error
        file.write(str(os.getpid()))
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)

"""What a long verb has already paid for: an append-only file of answers by key, and one process at a time in a folder.

A journal is JSON lines, `{"key": ..., ...}`. A line is written whole and at once, so a process that is killed leaves at
most one torn line, at the end, which the next one cuts off. The first record of a key stays; nothing is overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError

BLOCK = 1 << 24  # bytes searched at a time for the end of the last whole line


class Journal:
    """Records by key, on disk; in memory only where each lies (some 200 bytes a record).

    One process writes; hold the folder's lock. `flush` gives every record to the operating system at once, so SIGKILL
    loses none; `close` also waits for the disk.

    Raises:
        FuserlError: the file cannot be read or written, or a line in it is no record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offsets: dict[str, int] = {}
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
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[str]:
        """Keys, in the order in which they came."""
        return iter(self._offsets)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The record of a key, without the key.

        Raises:
            KeyError: it has none.
        """
        offset, parts = self._offsets[key], []
        while not parts or b"\n" not in parts[-1]:
            parts.append(os.pread(self._file.fileno(), 1 << 14, offset + sum(map(len, parts))))
        record = json.loads(b"".join(parts).split(b"\n", 1)[0])
        record.pop("key")
        return record

    def add(self, key: str, record: Mapping[str, Any]) -> bool:
        """Keep a record; False where the key has one already, which stays.

        Raises:
            FuserlError: it cannot be written, because the disk is full, say.
        """
        if key in self._offsets:
            return False
        line = json.dumps({"key": key, **record}, ensure_ascii=True, default=str).encode() + b"\n"
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
        self._offsets[key] = self._end
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
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    self._offsets.setdefault(_key_of(line), offset)
                except (ValueError, KeyError, TypeError) as error:
                    raise FuserlError(
                        f"a line is no record of a journal ({error!r})",
                        where=f"{self.path}, line {number + 1}",
                        hint="take the line out; what it held will be asked again",
                    ) from error
                offset += len(line)


def _key_of(line: bytes) -> str:
    """Our own lines begin with the key, and a key has nothing to escape: no need to parse a long answer."""
    head, _, rest = line.partition(b'"')
    if head == b"{" and rest.startswith(b'key": "'):
        return rest[7 : rest.index(b'"', 7)].decode("ascii")
    return json.loads(line)["key"]


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder: two processes that write one folder would destroy each other's work.

    Raises:
        FuserlError: another process holds it, or it cannot be written.
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
            raise FuserlError(
                "another process is working in this folder",
                where=str(path),
                hint="wait for it, or give another folder with `output=DIR`",
            ) from error
        file.write(str(os.getpid()))
        file.flush()
        yield

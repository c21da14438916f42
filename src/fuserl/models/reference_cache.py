"""A content-addressed store of reference log-probs that any number of processes read, fill and share at once.

One SQLite file for each (weights, dtype, kernel) keeps entries whole under kills; each carries a sum of its bytes, and one
whose bytes have changed is computed again. Whoever is about to compute an entry
claims it first; the others wait for the result, and take over what a dead process leaves behind. Beside the file, the
sums of whole splits are kept as arrays, so that a later job of a sweep reads one file.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import struct
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fuserl.errors import FuserlError
from fuserl.terminal import say

LAYOUT = 4  # raise it when a stored number changes its meaning
BEAT = 20.0  # seconds between two signs of life
STALE = 120.0  # seconds without one after which a claim is void
AT_ONCE = 500  # keys a query

TABLES = """
CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, logps REAL, num_tokens INTEGER, crc32 INTEGER, tokens BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT, beat REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
"""


class Entry(NamedTuple):
    """One response's log-probs."""

    key: bytes
    logps: float  # nats, summed over trained tokens
    num_tokens: int  # trained ones, after truncation
    tokens: np.ndarray | None = None  # [num_tokens], nats a token, float32 or float64


def _crc32(key: Any, logps: Any, num_tokens: Any) -> int:
    """Of an entry without its tokens; -1 where damage has given it other types."""
    if not (isinstance(key, bytes) and isinstance(logps, float) and isinstance(num_tokens, int)):
        return -1
    return zlib.crc32(struct.pack("<dq", logps, num_tokens), zlib.crc32(key))


def _sealed(key: bytes, tokens: np.ndarray) -> bytes:
    """Log-probs a token, and a sum of their bytes and the key's."""
    content = tokens.tobytes()
    return content + struct.pack("<I", zlib.crc32(content, zlib.crc32(key)))


def _unsealed(key: Any, blob: Any) -> bytes | None:
    """Without the sum; None where it is wrong."""
    if not (isinstance(key, bytes) and isinstance(blob, bytes)):
        return None
    content = blob[:-4]
    return content if blob[-4:] == struct.pack("<I", zlib.crc32(content, zlib.crc32(key))) else None


class Claimed(NamedTuple):
    """What became of some keys that were missing a moment ago."""

    mine: set[bytes]  # this process computes them now
    known: dict[bytes, float]  # another one has computed them meanwhile; the rest is being computed


class ReferenceCache:
    """Entries by content.

    Args:
        weights, dtype, backend: what decides the numbers beside the tokens.
        model: a name for people, as `fuserl doctor` prints it; it decides nothing.
    """

    def __init__(self, folder: Path, *, weights: str, dtype: str, backend: str, model: str = "") -> None:
        name = hashlib.sha256(f"{LAYOUT}|{weights}|{dtype}|{backend}".encode()).hexdigest()[:24]
        self.path = Path(folder) / f"{name}.sqlite"
        self.splits = Path(folder) / name
        self.hits, self.misses, self.seconds = 0, 0, 0.0
        self.owner = f"{_machine()}|{os.getpid()}|{_started(os.getpid())}|{uuid.uuid4().hex[:8]}"
        with explained("opened", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(self.path, timeout=120, isolation_level=None)
            self.database.executescript(TABLES)
            about = {"weights": weights, "dtype": dtype, "backend": backend, "model": model}
            self.database.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", about.items())
            os.utime(self.path)  # its last use, for those who prune

    def get(self, keys: Iterable[bytes], *, with_tokens: bool = False) -> dict[bytes, float]:
        """What is there of these keys; `with_tokens` leaves out entries without log-probs a token."""
        condition = " AND tokens IS NOT NULL" if with_tokens else ""
        columns = "key, logps, num_tokens, crc32, tokens" if with_tokens else "key, logps, num_tokens, crc32"
        found, damaged = {}, []
        for row in self._select(f"SELECT {columns} FROM logps WHERE key IN ({{marks}}){condition}", list(keys)):
            if row[3] == _crc32(*row[:3]) and (not with_tokens or _unsealed(row[0], row[4]) is not None):
                found[row[0]] = row[1]
            else:
                damaged.append(row[:1])
        if damaged:
            say(f"{len(damaged)} damaged reference log-probs are computed again ({self.path})")
            self.database.executemany("DELETE FROM logps WHERE key = ?", damaged)
        return found

    def tokens(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Log-probs a token (nats, [tokens]) of the keys that have them whole, to the bit as they were computed."""
        query = "SELECT key, num_tokens, tokens FROM logps WHERE key IN ({marks}) AND tokens IS NOT NULL"
        found = ((key, size, _unsealed(key, blob)) for key, size, blob in self._select(query, list(keys)))
        return {
            key: np.frombuffer(content, np.float64 if len(content) == 8 * size else np.float32)
            for key, size, content in found
            if content is not None
        }

    def _select(self, query: str, keys: Sequence[bytes]) -> Iterable[tuple]:
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            yield from self.database.execute(query.format(marks=",".join("?" * len(part))), part)

    def put(self, rows: Iterable[Entry]) -> None:
        """Add entries and drop all claims on them, in one transaction; the first writer of a sum stands."""
        values = [
            (*row[:3], _crc32(*row[:3]), None if row.tokens is None else _sealed(row.key, row.tokens)) for row in rows
        ]
        with self._transaction():
            self.database.executemany(
                "INSERT INTO logps VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET tokens = excluded.tokens"
                " WHERE logps.tokens IS NULL",
                values,
            )
            self.database.executemany("DELETE FROM claims WHERE key = ?", [value[:1] for value in values])

    def claim(self, keys: Sequence[bytes], *, with_tokens: bool = False) -> Claimed:
        """Take what nobody alive is computing."""
        with self._transaction():
            known = self.get(keys, with_tokens=with_tokens)
            rest = [key for key in keys if key not in known]
            held = self._select("SELECT key, owner, beat FROM claims WHERE key IN ({marks})", rest)
            taken = {key for key, owner, beat in held if owner != self.owner and alive(owner, beat)}
            mine = [key for key in rest if key not in taken]
            self.database.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", [(key, self.owner, time.time()) for key in mine]
            )
        return Claimed(set(mine), known)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Within it, this process's claims stay alive however long a pack takes; after it, it has none."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self._transaction():
                self.database.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))

    def _beat(self, stop: threading.Event) -> None:
        database = sqlite3.connect(self.path, timeout=BEAT, isolation_level=None)
        while not stop.wait(BEAT):
            with suppress(sqlite3.OperationalError):  # others are writing: the next beat will do
                database.execute("UPDATE claims SET beat = ? WHERE owner = ?", (time.time(), self.owner))
        database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")

    def recall(self, split: str) -> np.ndarray | None:
        """The sums of a whole split, if they were remembered and are whole."""
        try:
            content = (self.splits / f"{split}.sums").read_bytes()
        except OSError:
            return None
        digest, sums = content[:32], content[32:]
        return np.frombuffer(sums, np.float64) if hashlib.sha256(sums).digest() == digest else None

    def remember(self, split: str, sums: np.ndarray) -> None:
        """Keep the sums of a whole split beside the entries."""
        self.splits.mkdir(parents=True, exist_ok=True)
        content = np.asarray(sums, np.float64).tobytes()
        with tempfile.NamedTemporaryFile(dir=self.splits, suffix=".part", delete=False) as part:
            part.write(hashlib.sha256(content).digest() + content)
        os.replace(part.name, self.splits / f"{split}.sums")

    def close(self) -> None:
        """Let go of the file."""
        self.database.close()


@contextmanager
def explained(done: str, path: Path) -> Iterator[None]:
    """What goes wrong in the file, in words.

    Raises:
        FuserlError: instead of errors of the disk and of SQLite.
    """
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # the last: damage in the words of SQLite itself
        raise FuserlError(
            f"the reference cache cannot be {done} ({error})",
            where=str(path),
            hint="delete the file if it is damaged (it is computed again), or give another folder with `cache=DIR`",
        ) from error


@cache
def _machine() -> str:
    """What tells this machine's processes from others: host names repeat, and containers count processes anew."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine started: a number that tells it from a later one with the same id."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError):
        return ""
    return "" if state == "Z" else rest[18]  # a zombie computes nothing


def alive(owner: str, beat: float) -> bool:
    """Whether a claim's owner still works: on another machine, or stopped, its signs of life tell."""
    if abs(time.time() - beat) > STALE:  # a clock that was set back must not keep the claims of the dead
        return False
    machine, pid, started, _ = owner.split("|")
    if machine != _machine():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(int(pid)) == started

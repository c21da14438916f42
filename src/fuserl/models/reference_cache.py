"""A content-addressed store of reference log-probs that any number of processes read, fill and share at once.

One SQLite file for each (weights, dtype, kernel) keeps entries whole under kills. Whoever is about to compute an entry
claims it first; the others wait for the result, and take over what a dead process leaves behind. Beside the file, the
sums of whole splits are kept as arrays, so that a later job of a sweep reads one file.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fuserl.errors import FuserlError

LAYOUT = 2  # raise it when a stored number changes its meaning
STALE = 600.0  # seconds after which a claim of another machine without a sign of life is void
AT_ONCE = 500  # keys a query


class Entry(NamedTuple):
    """One response's log-probs."""

    key: bytes
    logps: float  # nats, summed over trained tokens
    num_tokens: int
    tokens: bytes | None = None  # nats a token, float64


class Claimed(NamedTuple):
    """What became of some keys that were missing a moment ago."""

    mine: set[bytes]  # this process computes them now
    known: dict[bytes, float]  # another one has computed them meanwhile; the rest is being computed


class ReferenceCache:
    """Entries by content."""

    def __init__(self, folder: Path, *, weights: str, dtype: str, backend: str) -> None:
        name = hashlib.sha256(f"{LAYOUT}|{weights}|{dtype}|{backend}".encode()).hexdigest()[:24]
        self.path = Path(folder) / f"{name}.sqlite"
        self.splits = Path(folder) / name
        self.hits, self.misses, self.seconds = 0, 0, 0.0
        self.owner = f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}|{uuid.uuid4().hex[:8]}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = self._open()
        except (OSError, sqlite3.Error) as error:
            raise FuserlError(
                f"the reference cache cannot be opened ({error})",
                where=str(self.path),
                hint="delete the file (it is computed again), or give another folder with `cache=DIR`",
            ) from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=120, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS logps"
            " (key BLOB PRIMARY KEY, logps REAL, num_tokens INTEGER, tokens BLOB) WITHOUT ROWID"
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT, beat REAL) WITHOUT ROWID"
        )
        return database

    def get(self, keys: Iterable[bytes], *, with_tokens: bool = False) -> dict[bytes, float]:
        """What is there of these keys; `with_tokens` leaves out entries without log-probs a token."""
        condition = " AND tokens IS NOT NULL" if with_tokens else ""
        return dict(self._select("SELECT key, logps FROM logps WHERE key IN ({marks})" + condition, list(keys)))

    def tokens(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Log-probs a token (nats, [tokens]) of the keys that have them."""
        rows = self._select("SELECT key, tokens FROM logps WHERE key IN ({marks}) AND tokens IS NOT NULL", list(keys))
        return {key: np.frombuffer(blob, np.float64) for key, blob in rows}

    def _select(self, query: str, keys: Sequence[bytes]) -> Iterable[tuple]:
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            yield from self.database.execute(query.format(marks=",".join("?" * len(part))), part)

    def put(self, rows: Iterable[Entry]) -> None:
        """Add entries and drop this process's claims on them, in one transaction; the first writer of a sum stands."""
        rows = list(rows)
        with self._transaction():
            self.database.executemany(
                "INSERT INTO logps VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET tokens = excluded.tokens"
                " WHERE logps.tokens IS NULL",
                rows,
            )
            self.database.executemany("DELETE FROM claims WHERE key = ?", [(row.key,) for row in rows])
            self.database.execute("UPDATE claims SET beat = ? WHERE owner = ?", (time.time(), self.owner))

    def claim(self, keys: Sequence[bytes], *, with_tokens: bool = False) -> Claimed:
        """Take what nobody alive is computing."""
        with self._transaction():
            known = self.get(keys, with_tokens=with_tokens)
            rest = [key for key in keys if key not in known]
            held = self._select("SELECT key, owner, beat FROM claims WHERE key IN ({marks})", rest)
            taken = {key for key, owner, beat in held if owner != self.owner and _alive(owner, beat)}
            mine = [key for key in rest if key not in taken]
            self.database.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", [(key, self.owner, time.time()) for key in mine]
            )
        return Claimed(set(mine), known)

    def release(self) -> None:
        """Give up every claim of this process."""
        with self._transaction():
            self.database.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))

    @contextmanager
    def _transaction(self):
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")

    def recall(self, split: str) -> np.ndarray | None:
        """The sums of a whole split, if they were remembered."""
        try:
            return np.load(self.splits / f"{split}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent or damaged: it is made anew
            return None

    def remember(self, split: str, sums: np.ndarray) -> None:
        """Keep the sums of a whole split beside the entries."""
        self.splits.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.splits, suffix=".part", delete=False) as part:
            np.save(part, sums)
        os.replace(part.name, self.splits / f"{split}.npy")

    def close(self) -> None:
        """Let go of the file."""
        self.database.close()


def _started(pid: int) -> str:
    """When a process of this machine started: a number that tells it from a later one with the same id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(owner: str, beat: float) -> bool:
    host, pid, started, _ = owner.split("|")
    if host != socket.gethostname():
        return time.time() - beat < STALE
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(int(pid)) == started

"""The folder of reference caches from outside: what lies there, when it was last used, and how it is made smaller."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from fuserl.models.reference_cache import alive, explained

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Kept:
    """One cache: the SQLite file, and the folder beside it with the sums of whole splits."""

    path: Path
    about: dict[str, str]  # weights, dtype, backend, model
    entries: int | None  # None: the file is damaged or of another version, nothing will read it
    in_use: bool  # a living process claims entries
    last_used: float  # seconds since the epoch
    size: int  # bytes


def require_writable(folder: Path) -> None:
    """To be known before a model is loaded.

    Raises:
        FuserlError: the folder can only be read.
    """
    with explained("written", folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def caches(folder: Path) -> list[Kept]:
    """What lies in a folder, the last used first."""
    return sorted((_look(path) for path in folder.glob("*.sqlite")), key=lambda kept: -kept.last_used)


def _look(path: Path) -> Kept:
    about, entries, in_use = {}, None, False
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
        about = dict(database.execute("SELECT name, value FROM about"))
        in_use = any(alive(*claim) for claim in database.execute("SELECT owner, beat FROM claims"))
        (entries,) = database.execute("SELECT COUNT(*) FROM logps").fetchone()
    size = sum(file.stat().st_size for file in _files(path))
    return Kept(path, about, entries, in_use, path.stat().st_mtime, size)


def _files(path: Path) -> list[Path]:
    """The SQLite file, its journal and the sums of splits."""
    return [path, *path.parent.glob(f"{path.name}-*"), *path.with_suffix("").glob("*")]


def prune(folder: Path, days: float) -> list[Kept]:
    """Delete the caches that were not used for so many days; what a living process fills is left alone.

    Returns:
        What was deleted.
    """
    old = [kept for kept in caches(folder) if kept.last_used < time.time() - days * DAY and not kept.in_use]
    for kept in old:
        for file in _files(kept.path):
            file.unlink(missing_ok=True)
        shutil.rmtree(kept.path.with_suffix(""), ignore_errors=True)
    return old

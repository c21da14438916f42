"""Arrays in the cache: whole or absent, whoever is killed or writes at the same time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from fuserl.errors import FuserlError


def recalled(path: Path) -> np.ndarray | None:
    """What was kept; None where nothing was, or it is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def keep(path: Path, array: np.ndarray, what: str) -> None:
    """Put an array in place.

    Args:
        what: it is, for the message.

    Raises:
        FuserlError: the cache cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        raise FuserlError(
            f"{what} cannot be kept: {error.strerror or error}",
            where=str(path),
            hint="make room, or give another `cache`; what was kept before stays",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)

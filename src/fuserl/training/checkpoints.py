"""Checkpoints that a kill cannot halve, written while training goes on, and looked through before they are used."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map

from fuserl.errors import FuserlError
from fuserl.records.manifest import crc32
from fuserl.terminal import say
from fuserl.training.shards import REST, SUMS, put_together

PART = ".part"  # what is not yet whole
DAMAGED = ".damaged"


class Writer:
    """Writes one checkpoint at a time.

    Args:
        behind: from a copy in main memory, while training goes on; else at once.
    """

    def __init__(self, *, behind: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint") if behind else None
        self._pending: Future[None] | None = None

    def write(self, what: Any, action: Callable[[Any], None]) -> None:
        """Call `action` with tensors and plain values as they are now.

        Raises:
            FuserlError: this one cannot be written, or the one before could not.
        """
        self.finish()
        if self._thread is None:
            action(what)
        else:
            self._pending = self._thread.submit(action, copied(what))

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            FuserlError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """What is being written is written to its end; its thread ends, and its errors are not told any more."""
        if self._thread:
            self._thread.shutdown()


def copied(tree: Any) -> Any:
    """The same values in main memory, which no later step changes."""
    return tree_map(lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, tree)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or absent."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename. A folder of the same step, in pieces, is as good and stays."""
        if not Path(path).is_dir():
            self.writer.write(checkpoint, lambda copy: _write(copy, Path(path)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A file; or the folder of a run whose model was cut up, put together."""
        if Path(path).is_dir():
            return put_together(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(PART)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, part)  # straight to the file: Lightning would hold a copy of everything in memory
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer knows no other than the latter
        part.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: Exception) -> FuserlError:
    """A checkpoint that could not be written."""
    free = shutil.disk_usage(path.parent).free
    return FuserlError(
        f"the checkpoint could not be written ({str(error).splitlines()[0]}); {free / 2**30:.1f} GiB are free there",
        where=str(path),
        hint="make room on the disk, then run the same command again: it goes on from the checkpoint before this one",
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, all of which are read; None: nothing is.

    A file's sums are those of its zip records, a folder's are in files beside the pieces.
    """
    try:
        if checkpoint.is_file():
            return _damaged_record(checkpoint)
        for sums in sorted(checkpoint.glob(f"*{SUMS}")):
            for name, expected in json.loads(sums.read_text(encoding="utf-8")).items():
                if crc32(checkpoint / name) != expected:
                    return f"`{name}` is not what was written"
        in_pieces = any(checkpoint.glob("shard-*"))  # DeepSpeed's has no rest
        return _damaged_record(checkpoint / REST) if in_pieces else None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__


def _damaged_record(path: Path) -> str | None:
    with zipfile.ZipFile(path) as file:
        bad = file.testzip()
    return f"`{bad}` in it is not what was written" if bad else None


def step_of(checkpoint: Path) -> int:
    """Optimiser steps that were done.

    >>> step_of(Path("checkpoints/step-12.ckpt"))
    12
    """
    return int(checkpoint.stem.split("-")[1])


def newest_first(folder: Path) -> list[Path]:
    """The whole checkpoints of a run."""
    return sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are right; damaged ones before it are said, and set aside under another name.

    Raises:
        FuserlError: there are checkpoints, and all are damaged.
    """
    found = newest_first(folder)
    for checkpoint in found:
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        aside = checkpoint.with_suffix(DAMAGED)
        remove(aside)
        checkpoint.rename(aside)
        say(f"the checkpoint of step {step_of(checkpoint)} is damaged ({wrong}); it is set aside as {aside}")
    if found:
        raise FuserlError(
            "every checkpoint of this run is damaged",
            where=str(folder),
            hint="look at the disk; `checkpoint.keep` says how many are kept; delete the folder to start anew",
        )
    return None


def remove(checkpoint: Path) -> None:
    """A file or a folder; a name first, so that no half of it is taken for a checkpoint."""
    if checkpoint.is_dir():
        gone = checkpoint.with_suffix(PART)
        shutil.rmtree(gone, ignore_errors=True)
        checkpoint.rename(gone)
        shutil.rmtree(gone)
    else:
        checkpoint.unlink(missing_ok=True)

"""Checkpoints that a kill cannot halve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fuserl.training.shards import put_together


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or absent."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename. A folder of the same step, in pieces, is as good and stays."""
        if Path(path).is_dir():
            return
        part = Path(path).with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, part)  # straight to the file: Lightning would hold a copy of everything in memory
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A file; or the folder of a run whose model was cut up, put together."""
        if Path(path).is_dir():
            return put_together(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)

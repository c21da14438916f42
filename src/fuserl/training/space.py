"""Room on the disk for what a run will write, looked at before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.training.checkpoints import newest_first

STATES = 3  # tensors of a trained weight in a checkpoint: itself, and AdamW's two moments


def checkpoint_bytes(policy: Any) -> int:
    """Of one checkpoint: trained weights and their moments; the rest is small."""
    return STATES * sum(one.numel() * one.element_size() for one in policy.parameters() if one.requires_grad)


def model_bytes(policy: Any) -> int:
    """Of `model/`."""
    return sum(one.numel() * one.element_size() for one in policy.parameters())


def most_checkpoints(cfg: DictConfig) -> int:
    """On the disk at a time: those that stay, the best one, and one that is being written."""
    return cfg.checkpoint.keep + bool(cfg.checkpoint.best) + 1


def require_space(cfg: DictConfig, policy: Any) -> None:
    """Raises: FuserlError: the disk of `output` has no room for the run's checkpoints and its model."""
    folder = Path(cfg.output)
    there = len(newest_first(folder / "checkpoints"))
    wanted = max(0, most_checkpoints(cfg) - there) * checkpoint_bytes(policy) + model_bytes(policy)
    there_now = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there_now).free
    if free < wanted:
        raise FuserlError(
            f"{wanted / 2**30:.1f} GiB will be written, and {free / 2**30:.1f} GiB are free: checkpoints of "
            f"{checkpoint_bytes(policy) / 2**30:.1f} GiB, at most {most_checkpoints(cfg)} at a time, and the model",
            where=str(folder),
            hint="give another disk with `output=DIR`, or fewer checkpoints with `checkpoint.keep=1`",
        )

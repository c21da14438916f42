"""Lightning's strategy of DeepSpeed, with the sums of a step and the checkpoints that the other strategies have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from fuserl.errors import FuserlError


def settings(stage: int, offload: bool) -> dict[str, Any]:
    """DeepSpeed's own; Lightning adds precision, clipping and packs a step.

    Args:
        stage: 2 cuts up moments and gradients, 3 weights as well.
        offload: whether moments lie in main memory.
    """
    cut: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": True}
    if offload:
        cut["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {"zero_allow_untested_optimizer": True, "zero_optimization": cut, "train_micro_batch_size_per_gpu": 1}


class WholeDeepSpeed(DeepSpeedStrategy):
    """A step's packs are divided by their number once, and a checkpoint is whole or absent."""

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided by the number of packs; the engine would do it again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict, filepath: Any, storage_options: Any | None = None) -> None:
        """Beside the target, renamed when all processes have written theirs."""
        folder, there = self.broadcast((Path(filepath), Path(filepath).exists()))
        if there:  # a resumed run comes by the step that it has resumed from
            return
        part = folder.with_suffix(".part")
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, part)
        self.barrier()
        if self.is_global_zero:
            part.rename(folder)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """DeepSpeed's own only.

        Raises:
            FuserlError: another strategy has written it.
        """
        if not (Path(checkpoint_path) / "checkpoint").is_dir():
            raise FuserlError(
                "DeepSpeed cannot read a checkpoint that another strategy has written",
                where=str(checkpoint_path),
                hint="go on with `trainer=fsdp2` or `trainer=ddp`, which read each other's, or give another `output`",
            )
        return super().load_checkpoint(checkpoint_path, weights_only)

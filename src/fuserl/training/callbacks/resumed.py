"""What a run that goes on from a checkpoint makes up for."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from fuserl.training.group_module import GroupModule


class ValidatedAgain(Callback):
    """Validates before the first step where that is due at the checkpoint's step.

    A checkpoint is written before the validation of its step, so nobody knows whether the killed process had come to
    its end; Lightning takes it for done.

    Args:
        every: optimiser steps between two validations.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """As Lightning's epoch loop does after a step."""
        if trainer.global_step and trainer.global_step % self.every == 0 and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

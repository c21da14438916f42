"""Which checkpoints a run has on disk; and an end that is asked for from outside: one more, and no step is lost."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from fuserl.errors import FuserlError, Stopped
from fuserl.terminal import say
from fuserl.training.checkpoints import PART, Writer, newest_first, remove, step_of
from fuserl.training.group_module import GroupModule

TWICE = 2.0  # seconds within which a signal that comes by two ways (terminal and launcher) is one


@dataclass(frozen=True)
class Best:
    """What says which step was the best one."""

    metric: str  # of a validation
    mode: str  # min or max

    def better(self, value: float, than: float | None) -> bool:
        """Whether this value is; NaN never."""
        if than is None:
            return not math.isnan(value)
        return value < than if self.mode == "min" else value > than


class Checkpoints(Checkpoint):
    """The newest checkpoints, and the one of the best validation. One more is there while a new one is written.

    Args:
        folder: of the checkpoints.
        every: optimiser steps between two; the last step has one in any case.
        keep: newest ones that stay.
        best: None: none stays for its metric.
    """

    def __init__(self, folder: Path, writer: Writer, *, every: int, keep: int, best: Best | None) -> None:
        self.folder, self.writer = folder, writer
        self.every, self.keep, self.best = every, keep, best
        self.best_step, self.best_value = None, None

    def on_train_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """The checkpoint that a run goes on from is there."""
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GroupModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Save where it is due."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Look whether this step is the best one so far.

        Raises:
            FuserlError: validation does not measure it; told before the first step.
        """
        if self.best is None:
            return
        if self.best.metric not in module.latest:
            known = ", ".join(sorted(name for name in module.latest if name.count("/") == 1))
            raise FuserlError(
                f"validation does not measure `{self.best.metric}`", where="`checkpoint.best`", hint=f"one of: {known}"
            )
        value = module.latest[self.best.metric]
        if trainer.global_step and trainer.state.fn == "fit" and self.best.better(value, self.best_value):
            self.save(trainer)
            self.best_step, self.best_value = trainer.global_step, value

    def save(self, trainer: L.Trainer) -> None:
        """A checkpoint of this step, if there is none. All ranks call it.

        Raises:
            FuserlError: it, or the one before it, cannot be written.
        """
        if trainer.global_step == self.saved:
            return
        self.saved = trainer.global_step
        self.settle(trainer)
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")

    def settle(self, trainer: L.Trainer) -> None:
        """Wait for what is being written, then remove what need not stay."""
        self.writer.finish()
        if not trainer.is_global_zero:
            return
        for halved in self.folder.glob(f"*{PART}"):  # by a kill
            shutil.rmtree(halved) if halved.is_dir() else halved.unlink()
        for old in newest_first(self.folder)[self.keep :]:
            if step_of(old) != self.best_step:
                remove(old)

    def best_checkpoint(self) -> Path | None:
        """The best step's."""
        return None if self.best_step is None else self.folder / f"step-{self.best_step}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """The best one so far."""
        return {"best_step": self.best_step, "best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self.best_step, self.best_value = state_dict["best_step"], state_dict["best_value"]


class StopOnSignal(Callback):
    """SIGTERM (a machine is taken away) and Ctrl-C end the run after the step at hand, with a checkpoint.

    All ranks agree on the step, whichever of them was told. A second signal ends the run at once.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.asked: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Listen instead of Lightning, whose handlers call collectives and requeue jobs; it puts back what was before."""
        self._listen(self._hear)

    def on_validation_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Before and after the training there is nothing to save."""
        if trainer.state.fn == "validate":
            self._listen(_at_once)

    def _listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self.process:  # a loader's, which works until the step at hand is done
            return
        if self.asked is None:
            self.asked, self.since = signal.Signals(number), now
            say(f"{self.asked.name}: the run ends after this step, with a checkpoint; a second one ends it at once")
        elif now - self.since > TWICE:
            _at_once(number, frame)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GroupModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Look after a whole step."""
        if (batch_index + 1) % trainer.accumulate_grad_batches == 0:
            self._end(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *rest: Any, **more: Any) -> None:
        """Look after every pack; what was validated of this step is validated again."""
        if trainer.state.fn == "fit":
            self._end(trainer)

    def _end(self, trainer: L.Trainer) -> None:
        asked = self.asked is not None
        if not trainer.strategy.reduce_boolean_decision(asked, all=False):
            return
        self.checkpoints.save(trainer)
        self.checkpoints.settle(trainer)
        trainer.strategy.barrier()  # all have written
        raise Stopped(
            self.asked or signal.SIGTERM, f"step {trainer.global_step} was the last one; its checkpoint is written"
        )


def _at_once(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, "the last checkpoint is kept")

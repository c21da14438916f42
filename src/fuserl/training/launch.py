"""Several processes of one machine, started with torchrun and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from omegaconf import DictConfig, OmegaConf

from fuserl.errors import Stopped
from fuserl.records.manifest import write_text_atomically
from fuserl.training.agent import PARENT, Ended, read, reason
from fuserl.training.folder import RunFolder

STEP_AND_CHECKPOINT = 120  # seconds that processes have to end by themselves after a signal; spot machines give no more


def launch(cfg: DictConfig, folder: RunFolder) -> None:
    """Hand the configuration to one process a device, and wait for them. The caller holds the folder.

    Raises:
        FuserlError: one of them failed.
        Stopped: this process was asked to end, and they have ended.
    """
    settings = folder.path / ".launch.yaml"  # with its interpolations, which config.yaml has resolved
    write_text_atomically(settings, OmegaConf.to_yaml(cfg, resolve=False))
    reasons, count = folder.path / ".ended.json", cfg.trainer.devices
    reasons.unlink(missing_ok=True)
    agent = [sys.executable, "-m", "fuserl.training.agent", str(count), str(STEP_AND_CHECKPOINT), str(settings)]
    status, asked = waited_for([*agent, str(reasons)])
    if asked and not folder.finished():
        raise Stopped(asked, "the training processes have ended")
    if status:
        raise reason(read(reasons) or [Ended(0, status, 0.0, None)], count, str(folder.path))


def waited_for(command: Sequence[str]) -> tuple[int, int]:
    """Run a command that hears SIGTERM and Ctrl-C once, through this process.

    Returns:
        Its status, and the signal that has ended it, 0 if none.
    """
    asked: list[int] = []
    environment = os.environ | {PARENT: str(os.getpid())}
    with subprocess.Popen(command, start_new_session=True, env=environment) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            """To the child, which has a session of its own and hears nothing of the terminal."""
            asked.append(number)
            child.send_signal(number)

        before = {one: signal.signal(one, pass_on) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            return child.wait(), asked[0] if asked else 0
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

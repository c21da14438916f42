"""What ends a run from outside its own code, in words: processes that are gone or silent, loaders that were killed."""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch

from fuserl.errors import FuserlError

WAITED = re.compile(r"[Tt]imed? ?out|timeout")
GONE = re.compile(
    r"[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|[Ss]ocket (closed|error)|pair closure|recvValue"
)
AMONG = re.compile(r"gloo|NCCL|TCPStore|c10d|pair closure|by peer", re.IGNORECASE)  # who speaks of it
SAID_BY = re.compile(r"^\[[^\]]*\] ")  # a line of C++
LOADER = re.compile(r"DataLoader worker \(pid.*?(is killed by signal: [\w ]+|exited unexpectedly)")


class PeersLost(FuserlError):
    """This process is well, and another one is not."""


@contextmanager
def in_words(timeout: float, trainer: L.Trainer | None = None) -> Iterator[None]:
    """Errors of what a run stands on, told with the place in the run and the way out.

    Args:
        timeout: seconds that processes wait for each other.
        trainer: None before there is one.

    Raises:
        FuserlError: a loader's process was killed.
        PeersLost: another rank is gone, or has not come for so long.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if (told := _told(error, timeout, trainer)) is None:
            raise
        raise told from error


def _told(error: Exception, timeout: float, trainer: L.Trainer | None) -> FuserlError | None:
    """The error in our words; None where it is none of these troubles."""
    text = str(error)
    first = SAID_BY.sub("", (text.splitlines() or [""])[0]).partition(". ")[0]
    found = LOADER.search(text)
    if found or _of_a_loader(error):
        return FuserlError(
            f"a loader process {found[1].strip() if found else f'ended while it handed over a pack ({error})'}",
            where=_place(trainer),
            hint="killed without anyone's doing means that memory or /dev/shm ran out: lower `trainer.num_workers` (0 needs "
            "no processes); the same command goes on from the last checkpoint",
        )
    among = isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and AMONG.search(text))
    if not among:
        return None
    rank = f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')} on {socket.gethostname()}"
    if WAITED.search(text):
        return PeersLost(
            f"{rank} has waited {timeout:g} s for the other ranks ({first})",
            where=_place(trainer),
            hint="a rank without a message like this one hangs: look at its machine (a GPU that hangs, memory that is swapped, "
            "the network); the same command goes on from the last checkpoint. Where ranks are only slow, raise `trainer.timeout`",
        )
    if GONE.search(text):
        return PeersLost(
            f"{rank} has lost another rank ({first})",
            where=_place(trainer),
            hint="a rank without a message like this one has ended: its machine's `dmesg` tells where memory ran out; "
            "the same command goes on from the last checkpoint",
        )
    return None


def _of_a_loader(error: Exception) -> bool:
    """Whether it comes from the pipe to one, which breaks where it is killed before torch has looked after it."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    from_torch = any(file.endswith("torch/utils/data/dataloader.py") for file in files)
    return isinstance(error, OSError | EOFError) and from_torch and any("/multiprocessing/" in file for file in files)


def _place(trainer: L.Trainer | None) -> str:
    if trainer is None:
        return f"setting up, process {os.getpid()}"
    doing = "validation" if trainer.validating or trainer.sanity_checking else "training"
    return f"{doing}, after optimiser step {trainer.global_step} of {trainer.max_steps}, process {os.getpid()}"

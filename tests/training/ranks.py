"""A run of `train` in several processes that are forked, not started: `ranks COUNT [override ...]`, for the nursery."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback

from fuserl.settings import compose
from fuserl.training.run import train


def main() -> None:
    """Every rank is this process's fork, but for the first, which it is itself; all die with it."""
    count, overrides = int(sys.argv[1]), sys.argv[2:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = [child for rank in range(1, count) if (child := _forked(rank, count, port, overrides))]
    _train(0, count, port, overrides)
    for child in others:
        assert os.waitpid(child, 0)[1] == 0


def _forked(rank: int, count: int, port: int, overrides: list[str]) -> int:
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        try:
            _train(rank, count, port, overrides)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def _train(rank: int, count: int, port: int, overrides: list[str]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in (place | store).items()}
    train(compose("train", [*overrides, f"trainer.devices={count}"]))

"""The processes of one machine under one agent of torch's: when one ends badly, all do, and the reason is written down.

`python -m fuserl.training.agent COUNT PATIENCE SETTINGS REASONS` is torchrun, but its reasons go to a file, not the terminal.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fuserl.errors import FuserlError
from fuserl.records.manifest import write_text_atomically

AT_ONCE = 10  # seconds: who ended so soon after the first did so by itself; the agent gives the others 30
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends
PARENT = "FUSERL_PARENT"  # environment: the number of the process that starts agent or rank
WHY: dict[int, str] = {
    signal.SIGKILL: "where nobody did it, memory ran out: `dmesg` tells, and `fuserl plan` what the run needs",
    signal.SIGBUS: "a file that it reads was cut, or /dev/shm is full: `df` tells",
    signal.SIGABRT: "a library gave up, its message is above; on GPUs it is most often NCCL's, when another process has not come "
    "for `trainer.timeout` seconds",
}
FROM_THERE = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Ended:
    """How one rank ended, badly."""

    rank: int
    status: int  # of the process; a signal is negative
    at: float  # seconds
    error: dict[str, str] | None  # what it told: what, where, hint, kind

    @property
    def killed(self) -> bool:
        """By a signal that is no request."""
        return self.status < 0 and self.status != -signal.SIGTERM

    @property
    def weight(self) -> int:
        """Smaller ones are causes, larger ones are what came of them."""
        if self.killed:
            return 0
        if self.error:
            return 3 if self.error["kind"] == "PeersLost" else 1
        return 4 if self.status in (-signal.SIGTERM, 128 + signal.SIGTERM) else 2


def reason(ranks: Sequence[Ended], count: int, where: str) -> FuserlError:
    """The one error that says why a launch ended."""
    first = min(one.at for one in ranks)
    cause = min((one for one in ranks if one.at <= first + AT_ONCE), key=lambda one: (one.weight, one.at))
    hung = [one.rank for one in ranks if one.killed and one.at > first + AT_ONCE]
    name = f"training process {cause.rank} of {count}"
    if cause.killed:
        return FuserlError(
            f"{name} was killed ({_signal(-cause.status)})",
            where=where,
            hint=f"{WHY.get(-cause.status, 'its message, if it had time for one, is above')}; {FROM_THERE}",
        )
    if cause.error:
        what = cause.error["what"] + (f"; what hung was process {', '.join(map(str, hung))} of {count}" if hung else "")
        return FuserlError(what, where=cause.error["where"], hint=cause.error["hint"])
    return FuserlError(
        f"{name} ended with status {cause.status}", where=where, hint=f"its message is above; {FROM_THERE}"
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read(path: Path) -> list[Ended]:
    """What an agent has written down; nothing where it was killed itself."""
    return [Ended(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def write_down(error: FuserlError) -> bool:
    """Leave a rank's error to the agent above it, which may end the rank at any moment; False where there is none."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    told = {"what": error.what, "where": error.where, "hint": error.hint, "kind": type(error).__name__}
    text = json.dumps({"message": str(error), "timestamp": str(int(time.time())), "error": told})
    write_text_atomically(Path(path), text)
    return True


def die_with_parent() -> None:
    """No rank outlives what has started it and holds the folder, however that was killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):  # which was killed before this line
            os.kill(os.getpid(), signal.SIGKILL)


def main(count: int, patience: int, settings: str, reasons: Path) -> int:
    """Start the ranks and wait for them.

    Args:
        patience: seconds that they have for ending by themselves after a signal.
        reasons: a file to write where one of them failed.

    Returns:
        The status of the agent's process.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    die_with_parent()
    os.environ[PARENT] = str(os.getpid())
    logging.disable(logging.ERROR)  # what it says stands in the reasons
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(uuid.uuid4()),
        max_restarts=0,
        shutdown_timeout=patience,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "fuserl.training.worker", settings)
    except ChildFailedError as failed:
        ranks = [
            Ended(rank, one.exitcode, one.timestamp, one.error_file_data.get("error"))  # type: ignore[union-attr]
            for rank, one in failed.failures.items()
        ]
        write_text_atomically(reasons, json.dumps([asdict(one) for one in ranks]))
        return 1
    except SignalException as asked:
        return 128 + asked.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))

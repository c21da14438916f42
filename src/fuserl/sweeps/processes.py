"""Jobs side by side on this machine, each in a process of its own: what one breaks, the others do not feel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.sweeps.job import FAILURE, last_run, write_failure
from fuserl.sweeps.plan import job_folder

POLL = 0.1  # seconds


@dataclass
class Running:
    """A job and where it runs."""

    slot: int  # GPU, where there are some
    process: subprocess.Popen
    folder: Path


def run_all(verb: str, jobs: Sequence[Sequence[str]], *, n_jobs: int | str, threads: int | str) -> list[Path]:
    """Run every job, at most `n_jobs` at a time; one that fails does not stop the others.

    Args:
        jobs: overrides of each.
        n_jobs: `auto`: one a GPU, or one a core where there is none.
        threads: of a job on a processor; `auto`: the cores divided among the jobs.

    Returns:
        Each job's folder, in order.
    """
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    width = (gpus or cores) if n_jobs == "auto" else int(n_jobs)
    width = max(1, min(width, len(jobs)))
    each = max(1, cores // width) if threads == "auto" else int(threads)
    waiting, running = deque(enumerate(jobs)), list[Running]()
    folders: list[Path] = [Path()] * len(jobs)
    try:
        while waiting or running:
            while waiting and len(running) < width:
                number, overrides = waiting.popleft()
                folders[number] = folder = _folder(verb, list(overrides))
                if last_run(folder) is not None:
                    continue
                slot = min(set(range(width)) - {job.slot for job in running})
                running.append(_started(verb, folder, list(overrides), slot, gpus, each))
            time.sleep(POLL)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _explain(job)
    finally:
        for job in running:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
    return folders


def _folder(verb: str, overrides: list[str]) -> Path:
    cfg = compose(verb, overrides)
    return job_folder(verb, Path(cfg.output), cfg)


def _started(verb: str, folder: Path, overrides: list[str], slot: int, gpus: int, threads: int) -> Running:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuserl.sweeps.worker"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps({"verb": verb, "overrides": overrides}) + "\n")
    process.stdin.flush()  # and stays open: its end would end the job
    return Running(slot, process, folder)


def _explain(job: Running) -> None:
    """A process that was killed could not say so itself."""
    code = job.process.returncode
    if job.process.stdin:
        job.process.stdin.close()
    if code and not (job.folder / FAILURE).exists():
        by = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        hint = (
            "too little memory? run fewer at a time with `hydra.launcher.n_jobs=1`; " if code == -signal.SIGKILL else ""
        )
        write_failure(
            job.folder,
            FuserlError(f"the job's process was ended {by}", hint=f"{hint}what it said is in {job.folder / 'log.txt'}"),
        )

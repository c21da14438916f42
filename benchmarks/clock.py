"""A worker's end: it waits for its turn before every step and reports time, memory, losses and the first gradient."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from benchmarks.kit import forget_peak, give_back_freed, memory_mb, peak_mb, wait
from benchmarks.turns import Job

ENTRIES = 65536  # of each weight's gradient that are compared, evenly spaced


def read_job() -> tuple[Job, TextIO]:
    """The job named on the command line and the way to the parent; what libraries print goes to the log."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    return job, channel


class Clock:
    """Turns, times and evidence of one run."""

    def __init__(self, job: Job, channel: TextIO) -> None:
        self.job, self.channel = job, channel
        self.device = torch.device(job.device)
        self.number = 0  # of the step
        self.losses: list[float] = []
        self.baseline_mb = memory_mb(self.device)  # of libraries; the weights are added below
        self.grad_norm = float("nan")
        self.tokens = ""

    def begin(self, model: nn.Module) -> None:
        """Wait for the turn; after the last step tell everything and end the process."""
        if self.number == self.job.steps:
            self._tell(
                losses=self.losses, baseline_mb=self.baseline_mb, grad_norm=self.grad_norm, tokens=self.tokens,
                gradient=str(self._gradient),
            )  # fmt: skip
            os._exit(0)
        if self.number == 0:
            self.baseline_mb += sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**20
            give_back_freed()
            forget_peak(self.device)
        self._tell(waiting=self.number)
        sys.stdin.readline()
        wait(self.device)
        self.started = time.perf_counter()

    def end(self) -> None:
        """The optimiser has stepped."""
        wait(self.device)
        self._tell(step=self.number, seconds=time.perf_counter() - self.started, peak_mb=peak_mb(self.device))
        self.number += 1

    def keep_gradient(self, model: nn.Module) -> None:
        """Of the first step, which is not timed."""
        if self.number == 0:
            torch.save(
                {
                    name: weight.grad.flatten()[:: max(1, weight.numel() // ENTRIES)].float().cpu()
                    for name, weight in model.named_parameters()
                    if weight.grad is not None
                },
                self._gradient,
            )

    @property
    def _gradient(self) -> Path:
        return Path(self.job.out) / "gradient.pt"

    def _tell(self, **what: Any) -> None:
        self.channel.write(json.dumps(what) + "\n")
        self.channel.flush()


def digest_of_sequences(sequences: Iterable[tuple[Sequence[int], int]]) -> str:
    """Of (all token ids, trained ones at the end), in any order."""
    rows = sorted(json.dumps([list(map(int, ids)), int(trained)]) for ids, trained in sequences)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]

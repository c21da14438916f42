"""Two trainers, each in a process of its own, that take turns step by step: paired times and each one's own memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kit import DTYPES, ROOT, Pair, median

TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2}  # relative, of losses and gradients
WORST_WEIGHT = "worst weight's gradient"
WORST = 4.0  # times that, of a single weight's gradient


@dataclass(frozen=True)
class Job:
    """One training run of a worker.

    Attributes:
        system: `ours` or `trl`: the worker's module.
        method: `dpo` or `sft`.
        rows: a step: prompts for us, rows of the file for TRL.
        steps: that are run and reported; the first warms up.
        settings: of the system: overrides of `fuserl train`, or arguments of TRL's config.
    """

    system: str
    method: str
    model: str
    data: str
    out: str
    rows: int
    steps: int
    threads: int
    device: str
    dtype: str
    lr: float = 2e-5
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a worker found."""

    seconds: list[float]  # of every timed step
    losses: list[float]  # of every step, the first included
    peak_mb: float  # over all steps
    baseline_mb: float  # of interpreter and libraries, and the weights
    grad_norm: float  # of the first step
    tokens: str  # digest of all sequences and of what is trained in them
    gradient: Path  # sampled entries of the first step's gradient

    @property
    def grown_mb(self) -> float:
        """Peak less baseline: gradients, optimiser, activations, logits, and whatever is kept for them."""
        return self.peak_mb - self.baseline_mb


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, job: Job) -> None:
        self.job, folder = job, Path(job.out)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        path = folder / "job.json"
        path.write_text(json.dumps(asdict(job)))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(job.threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # the one whose turn it is not must not spin
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # with more, TRL would use them all
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{job.system}_worker", str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip
        self.seconds: list[float] = []
        self.peak_mb = 0.0
        self.ready = self._read()

    def step(self) -> None:
        """Let it do one optimiser step."""
        self._go()
        done = self._read()
        self.seconds.append(done["seconds"])
        self.peak_mb = max(self.peak_mb, done["peak_mb"])
        self.ready = self._read()

    def finish(self) -> Run:
        """Take what it found; it ends by itself."""
        found = self.ready
        self.process.wait()
        return Run(
            self.seconds[1:], found["losses"], self.peak_mb, found["baseline_mb"], found["grad_norm"], found["tokens"],
            Path(found["gradient"]),
        )  # fmt: skip

    def kill(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        self.process.wait()

    def _go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            full = "out of memory" in tail.lower() or self.process.returncode == -signal.SIGKILL
            raise WorkerFailed(f"the worker `{self.job.system}` ended with {self.process.returncode}:\n{tail}", full)
        return json.loads(line)


class WorkerFailed(RuntimeError):
    """A worker ended before it was done; the message ends with its log.

    Attributes:
        memory_full: whether it ended for want of memory.
    """

    def __init__(self, what: str, memory_full: bool = False) -> None:
        super().__init__(what)
        self.memory_full = memory_full


def run(jobs: Sequence[Job]) -> list[Run]:
    """All jobs, step by step in turn on a processor; on a GPU, whose memory they cannot share, one after the other."""
    if jobs[0].device != "cpu":
        return [run_alone(job) for job in jobs]
    workers: list[Worker] = []
    try:
        workers += [Worker(job) for job in jobs]
        for number in range(jobs[0].steps):
            for worker in workers if number % 2 else reversed(workers):
                worker.step()
        return [worker.finish() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


def run_alone(job: Job) -> Run:
    """One job from start to end."""
    worker = Worker(job)
    try:
        for _ in range(job.steps):
            worker.step()
        return worker.finish()
    except BaseException:
        worker.kill()
        raise


def best_micro_batch(jobs: Sequence[Job]) -> tuple[Job, list[tuple[int, float, float]]]:
    """The fastest of TRL's jobs, and (micro-batch, seconds a step, grown MB) of each that fitted.

    Raises:
        WorkerFailed: none did.
    """
    tried, failed = [], None
    for job in jobs:
        try:
            found = run_alone(job)
        except WorkerFailed as error:
            if not error.memory_full:
                raise
            failed = error
            break
        tried.append((job.settings["per_device_train_batch_size"], median(found.seconds), found.grown_mb))
    if not tried:
        raise failed or WorkerFailed("no micro-batch was given")
    fastest = min(range(len(tried)), key=lambda number: tried[number][1])
    return jobs[fastest], tried


def require_equal(ours: Run, theirs: Run, dtype: str) -> dict[str, float]:
    """Both trained on the same tokens, with the same first gradient and the same losses all along.

    Returns:
        The largest relative differences that were found.

    Raises:
        AssertionError: they did not.
    """
    assert ours.tokens == theirs.tokens, "the two systems do not train on the same tokens"
    found = gradient_gap(torch.load(ours.gradient), torch.load(theirs.gradient))
    found["norm"] = abs(ours.grad_norm / theirs.grad_norm - 1)
    found["loss"] = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    require_within(found, dtype)
    return found


def require_within(gaps: dict[str, float], dtype: str) -> None:
    """No relative difference is larger than the dtype allows.

    Raises:
        AssertionError: one is.
    """
    for name, gap in gaps.items():
        allowed = TOLERANCE[dtype] * (WORST if name == WORST_WEIGHT else 1)
        assert gap <= allowed, f"{name} differs by {gap:.1e}, allowed {allowed:.0e}"


def gradient_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative distance of two gradients, weight by weight the worst and over all."""
    assert ours.keys() == theirs.keys(), f"other weights have gradients: {sorted(ours.keys() ^ theirs.keys())[:4]}"
    distance = {name: float((ours[name] - theirs[name]).norm()) for name in ours}
    size = {name: float(theirs[name].norm()) for name in ours}
    assert all(value > 0 for value in size.values()), "a weight has no gradient"
    whole = sum(value**2 for value in distance.values()) ** 0.5 / sum(value**2 for value in size.values()) ** 0.5
    return {"gradient": whole, WORST_WEIGHT: max(distance[name] / size[name] for name in ours)}


def paired(ours: Run, theirs: Run) -> Pair:
    """Times a step."""
    return Pair(ours.seconds, theirs.seconds)


def dtype_name(dtype: str) -> str:
    """As configurations spell it."""
    return str(DTYPES[dtype]).removeprefix("torch.")

"""`fuserl train`, with one callback more: the clock. `python -m benchmarks.ours_worker JOB.json`, see `turns`."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from benchmarks.clock import Clock, digest_of_sequences, read_job
from benchmarks.turns import Job, dtype_name
from fuserl.settings import compose
from fuserl.training import run
from fuserl.training.datamodule import Split
from fuserl.training.setup import Setup

METHODS = {
    "dpo": ("objective=fusepo_dpo", "objective.beta=0.1", "pairs=per_source", "weights=uniform"),
    "sft": ("objective=fusesft", "objective.size=64", "weights=uniform"),
}
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}


class InTurn(Callback):
    """Hands Lightning's steps to the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if batch_index % trainer.accumulate_grad_batches == 0:
            if trainer.global_step:
                self.clock.losses.append(module.latest["train/loss"])
            self.clock.begin(module.policy)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        if self.clock.number == 0:
            self.clock.grad_norm = module.latest["train/grad_norm"]
        self.clock.keep_gradient(module.policy)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if (batch_index + 1) % trainer.accumulate_grad_batches == 0:
            self.clock.end()


def overrides(job: Job) -> list[str]:
    """The command line of `fuserl train`."""
    return [
        *METHODS[job.method], "data=own", f"data.path={job.data}", "data.validation_fraction=0", "data.max_length=8192",
        "data.validation_split=none", f"target.path={job.model}", f"target.dtype={dtype_name(job.dtype)}",
        f"output={job.out}/run", f"cache={job.out}/cache", f"batch_size={job.rows}", f"max_steps={job.steps + 1}",
        f"optimizer.lr={job.lr}", "optimizer.warmup=0", "optimizer.decay=flat", "optimizer.clip=1e9", "probe.prompts=0",
        "logger=csv", "trainer.log_every=1", "checkpoint.every=1000000", "trainer.progress_bar=false",
        f"trainer.accelerator={ACCELERATORS[job.device]}",
        *(f"{key}={value}" for key, value in job.settings.items()),
    ]  # fmt: skip


def digest(split: Split) -> str:
    """Of the responses that are read."""
    store, sequences = split.store, []
    for row, column in zip(*np.nonzero(split.used), strict=True):
        branch = store.branch(row, column)
        sequences.append(([*store.prompt(row), *branch], len(branch) - int(store.untrained[row, column])))
    return digest_of_sequences(sequences)


def main() -> None:
    """Train until the clock ends the process."""
    job, channel = read_job()
    clock = Clock(job, channel)
    watchers = run.watchers

    def with_clock(cfg: Any, setup: Setup, folder: Any) -> Any:
        found = watchers(cfg, setup, folder)
        clock.tokens = digest(setup.prepared.train)
        found.callbacks.append(InTurn(clock))
        return found

    run.watchers = with_clock
    run.train(compose("train", overrides(job)))


if __name__ == "__main__":
    main()

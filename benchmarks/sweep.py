"""A sweep of eight `fuserl train` jobs over objective x beta (RLOO: kl) x tau: what each spends on data and on the reference.

    python -m benchmarks.sweep [--prompts 64]

Every job is a command of its own, as in a sweep, with one cache for all; seconds and forward passes are read from its
`summary.json`. Asserted: jobs after the first compute no reference log-prob, and the last job gives the same first and
last loss as the same job with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import kit
from benchmarks.groups import TASKS, dealt, write_for_both
from benchmarks.models import save_model, tokenizer
from benchmarks.ours_worker import ACCELERATORS
from benchmarks.turns import dtype_name
from fuserl.tokens.templates import load_template

ANCHORS = {"fusepo_dpo": "beta", "fusepo_rloo": "kl"}  # what ties each objective to the reference
STRENGTHS, TAUS = (0.01, 0.1), (0.1, 1.0)
FORM = """
{count} jobs over {prompts} prompts with 8 responses of zeroeval_multi, {steps} optimiser steps each, one cache for all. Data: reading,
tokenising and planning. Passes: responses whose reference log-probs were computed; hits: those that the cache knew. The last
job gave the same losses (relative difference {gap:.0e}) when it was run once more with an empty cache.
"""
COLUMNS = (
    "job",
    "objective",
    "beta or kl",
    "tau",
    "data, s",
    "reference, s",
    "passes",
    "hits",
    "training, s",
    "whole command, s",
)


def train(overrides: list[str], output: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the command; its summary, with the seconds of the whole."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "fuserl", "train", *overrides, f"output={output}", f"cache={cache}"]

    def work() -> None:
        done = subprocess.run(command, env=environment, cwd=kit.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")

    whole = kit.timed(work, torch.device("cpu"))
    return json.loads((output / "summary.json").read_text()) | {"whole_seconds": whole}


def common(model: Path, data: Path, arguments: argparse.Namespace) -> list[str]:
    """Settings that all jobs share."""
    return [
        "data=own", f"data.path={data}", "data.validation_fraction=0", f"target.path={model}",
        f"target.dtype={dtype_name(arguments.dtype)}", f"trainer.accelerator={ACCELERATORS[arguments.device]}", "batch_size=2",
        f"max_steps={arguments.steps}", "probe.prompts=0", "logger=csv", "trainer.progress_bar=false", "trainer.log_every=1",
        "optimizer.lr=1e-5",
    ]  # fmt: skip


def check(jobs: list[dict[str, Any]], fresh: dict[str, Any]) -> float:
    """The relative difference of the last job's losses from those of the same job with an empty cache.

    Raises:
        AssertionError: a later job ran the reference, or a cache changed a loss.
    """
    assert jobs[0]["reference_cache"]["misses"], "the first job found a full cache"
    later = [job["reference_cache"]["misses"] for job in jobs[1:]]
    assert not any(later), f"later jobs ran the reference: {later}"
    assert fresh["reference_cache"]["misses"], "the fresh job found a full cache"
    pairs = [(jobs[-1][name], fresh[name]) for name in ("first_train_loss", "last_train_loss")]
    gap = max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)
    assert gap <= 1e-4, f"with a cache the losses differ by {gap:.0e}"
    return gap


def row(number: int, settings: tuple[str, float, float], job: dict[str, Any]) -> list[object]:
    """Of the table."""
    cache = job["reference_cache"]
    return [
        number, *settings, f"{job['data_seconds']:.2f}", f"{cache['seconds']:.2f}", cache["misses"], cache["hits"],
        f"{job['train_seconds']:.2f}", f"{job['whole_seconds']:.1f}",
    ]  # fmt: skip


def main() -> Path:
    """Run the jobs and write the table."""
    arguments = kit.options(__doc__, prompts=64, steps=2).parse_args()
    sweep = list(product(ANCHORS, STRENGTHS, TAUS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        groups = dealt(TASKS[0], load_template(tokenizer()), arguments.prompts)
        data, _ = write_for_both(groups, folder, "dpo")
        model = save_model(folder / "model", arguments.size, kit.DTYPES[arguments.dtype])
        shared = common(model, data, arguments)
        jobs: list[dict[str, Any]] = []
        for number, (objective, strength, tau) in enumerate(sweep):
            own = [f"objective={objective}", f"objective.{ANCHORS[objective]}={strength}", f"weights.tau={tau}"]
            jobs.append(train([*shared, *own], folder / f"job{number}", folder / "cache", arguments))
            print(*row(number + 1, sweep[number], jobs[-1]), sep=" | ", flush=True)
        gap = check(jobs, train([*shared, *own], folder / "fresh", folder / "empty", arguments))
    form = FORM.strip().format(count=len(sweep), prompts=arguments.prompts, steps=arguments.steps, gap=gap)
    rows = [row(number + 1, *pair) for number, pair in enumerate(zip(sweep, jobs, strict=True))]
    text = kit.header("A sweep that shares its caches", arguments) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("sweep", text, arguments)


if __name__ == "__main__":
    main()

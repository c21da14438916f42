"""Sweeps and runs on a real Slurm: its controller, two nodes and its accounting run here, as this test's own.

`make slurm` installs Debian's packages, with root's rights; `make test-slurm` runs this, and `make test` skips it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kit
import pytest
import slurm
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing()))

TINY = (
    "data.limit=24", "data.validation_limit=8", "batch_size=8", "max_steps=6", "logger=csv", "probe.prompts=0", "optimizer.lr=1e-3",
    "trainer.accelerator=cpu", "checkpoint.every=1", "trainer.log_every=1", "trainer.progress_bar=false",
)  # fmt: skip
LONG = (*TINY, "max_steps=30", "checkpoint.every=3")  # long enough to be met while it runs
ON_SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.cpus_per_task=1")
PATIENCE = 240.0  # seconds


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder,
        slurm.cluster(Path(folder) / "cluster") as running,
    ):
        Path(folder).chmod(0o755)
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return f"cache={tmp_path_factory.mktemp('cache')}"


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "fuserl", "train", "--multirun", *overrides, f"output={folder}"]


def swept(cluster: slurm.Cluster, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *overrides), env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE
    )


def weights(folder: Path) -> dict[str, bytes]:
    """Of every finished job: the bytes of its weights, by the job's name."""
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("train-*/model/model.safetensors")}


def summaries(folder: Path) -> dict[str, dict]:
    """Of every finished job, without what a clock says."""
    found = {path.parts[-2]: json.loads(path.read_text()) for path in folder.glob("train-*/summary.json")}
    return {name: {key: told[key] for key in ("steps", "objective", "validation")} for name, told in found.items()}


def until(true: Callable[[], object], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def steps_saved(folder: Path) -> int:
    """The last step of which a job has a checkpoint; 0: none."""
    return max((int(path.stem.split("-")[1]) for path in folder.glob("train-*/checkpoints/step-*.ckpt")), default=0)


def test_a_sweep_over_nodes_is_the_sweep_of_this_machine(cluster, cache, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    chosen = (*TINY, "seed=0,1", cache)
    done = swept(cluster, there, *chosen, *ON_SLURM)
    assert done.returncode == 0, done.stderr + cluster.logs()
    assert done.stderr.count("✓") == 2
    until(lambda: set(cluster.jobs().values()) == {"COMPLETED"}, lambda: str(cluster.jobs()) + cluster.logs())
    assert "2 jobs" in swept(cluster, here, *chosen).stderr
    assert weights(there) == weights(here)
    assert len(weights(here)) == 2
    assert summaries(there) == summaries(here)


@pytest.fixture(scope="module")
def undisturbed(cluster, cache, tmp_path_factory) -> dict[str, bytes]:
    """The long job's weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = swept(cluster, folder, *LONG, cache)
    assert done.returncode == 0, done.stderr
    return weights(folder)


def started(cluster: slurm.Cluster, folder: Path, *overrides: str) -> tuple[subprocess.Popen[str], str]:
    """A sweep of one long job on Slurm, and the number of that job, once it has a checkpoint and goes on."""
    environment = cluster.environment
    sweep = subprocess.Popen(command(folder, *LONG, *overrides), env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: steps_saved(folder), cluster.logs)
    (job,) = [name for name, state in cluster.jobs().items() if state == "RUNNING"]
    assert not weights(folder)
    return sweep, job


def test_a_job_that_is_cancelled_saves_is_told_and_continues(cluster, cache, tmp_path, undisturbed):
    sweep, job = started(cluster, tmp_path, cache, *ON_SLURM)
    cluster.tell("scancel", job)
    _, said = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 1
    assert "Traceback" not in said.partition("error:")[2], said
    assert "1 of 1 jobs are not done, and their launcher gave up" in said
    assert "CANCELLED" in said
    reached = steps_saved(tmp_path)
    assert 0 < reached < 30
    assert f"step {reached} was the last one; its checkpoint is written" in submitted(tmp_path)
    again = swept(cluster, tmp_path, *LONG, cache, *ON_SLURM)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == undisturbed


def submitted(folder: Path) -> str:
    """What the jobs themselves printed."""
    return "".join(path.read_text() for path in folder.glob(".submitit/*/*_log.*"))


def test_a_job_that_gives_way_is_queued_again_by_the_cluster_and_continues(cluster, cache, tmp_path, undisturbed):
    sweep, job = started(cluster, tmp_path, cache, *ON_SLURM)
    cluster.tell("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    until(lambda: cluster.field(job, "Restarts") == "1", cluster.logs)
    _, said = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, said + cluster.logs()
    assert re.search(r"step \d+ was the last one; its checkpoint is written", submitted(tmp_path))
    assert weights(tmp_path) == undisturbed


def test_jobs_outlive_their_sweep_and_the_same_command_finds_them(cluster, cache, tmp_path, undisturbed):
    sweep, job = started(cluster, tmp_path, cache, *ON_SLURM)
    second = swept(cluster, tmp_path, *LONG, cache, *ON_SLURM)
    assert second.returncode == 1
    assert "another process is working in this folder" in second.stderr
    sweep.kill()
    sweep.communicate()
    again = swept(cluster, tmp_path, *LONG, cache, *ON_SLURM)
    assert again.returncode == 0, again.stderr
    until(lambda: cluster.jobs()[job] == "COMPLETED", cluster.logs)
    assert submitted(tmp_path).count("Job completed successfully") == 2, "the first one, and one that found it finished"
    assert weights(tmp_path) == undisturbed


def test_what_the_controller_refuses_is_told(cluster, cache, tmp_path):
    done = swept(cluster, tmp_path, *TINY, cache, *ON_SLURM, "hydra.launcher.partition=nowhere")
    assert done.returncode == 1
    assert "invalid partition specified: nowhere" in done.stderr.partition("error:")[2]
    assert "Traceback" not in done.stderr.partition("error: 1 of 1")[2]


def test_the_script_of_the_page_trains_over_two_nodes(cluster, cache, tmp_path):
    """Weights in float64; the miniature's norms are computed in float32, which sums of two halves show."""
    page = (kit.ROOT / "docs" / "clusters.md").read_text()
    (tmp_path / "train.sbatch").write_text(re.findall(r"```sh\n(#!/bin/bash\n.*?)```", page, re.DOTALL)[0])
    exact = (*TINY, "target.dtype=float64", "trainer.precision=64-true", cache)
    over = ("trainer=fsdp2", "trainer.nodes=2", "trainer.devices=1", f"output={tmp_path / 'over'}")
    environment = cluster.environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    options = ("--wait", "--gpus-per-node=1", "--time=10", "--signal=TERM@60", f"--output={tmp_path / 'said.log'}")
    done = subprocess.run(
        ["sbatch", *options, str(tmp_path / "train.sbatch"), *exact, *over],
        env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    said = (tmp_path / "said.log").read_text() if (tmp_path / "said.log").exists() else ""
    assert done.returncode == 0, done.stderr + said
    alone = [sys.executable, "-m", "fuserl", "train", *exact, f"output={tmp_path / 'alone'}"]
    subprocess.run(alone, env=environment, check=True, capture_output=True)
    found, wanted = (load_file(tmp_path / name / "model/model.safetensors") for name in ("over", "alone"))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)

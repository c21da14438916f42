"""Whole sweeps with tiny jobs: killed and continued, with a job that fails, by every launcher that is installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fuserl.errors import FuserlError
from fuserl.sweeps.sweep import sweep

TINY = (
    "data.limit=24", "data.validation_limit=8", "batch_size=8", "max_steps=6", "logger=csv", "probe.prompts=0", "optimizer.lr=1e-3",
    "trainer.accelerator=cpu", "checkpoint.every=1", "trainer.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return f"cache={tmp_path_factory.mktemp('cache')}"


def weights(folder: Path) -> dict[str, bytes]:
    """Of every finished job: the bytes of its weights, by the job's name."""
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("train-*/model/model.safetensors")}


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "fuserl", "train", "--multirun", *TINY, *overrides, f"output={folder}"]


def test_a_sweep_that_is_killed_twice_ends_with_the_same_weights(tmp_path, cache):
    choices = ("objective=fusesft,sft_best", "seed=0,1", cache)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    sweep("train", [*TINY, *choices, "hydra/launcher=basic", f"output={undisturbed}"])  # another launcher, too
    for ready in (0, 2):  # before the first job is done, and in the middle
        process = subprocess.Popen(
            command(killed, *choices), stderr=subprocess.DEVNULL, start_new_session=True, env=environment
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            done = len(list(killed.glob("train-*/summary.json")))
            begun = len(list(killed.glob("train-*/checkpoints/*.ckpt")))
            if (ready == 0 and begun) or (ready and done >= ready):
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(weights(killed)) < 4, "the sweep was over before it could be killed"
        _wait_for_the_orphans(killed)
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("train-*/summary.json")}
    done = subprocess.run(command(killed, *choices), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert weights(killed) == weights(undisturbed)
    assert len(weights(killed)) == 4
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items()), "a finished job was run again"


def _wait_for_the_orphans(folder: Path) -> None:
    """Jobs end with their sweep; a moment later their processes are gone."""
    deadline = time.monotonic() + 20
    pids = [json.loads(path.read_text())["pid"] for path in folder.glob("train-*/started.json")]
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a job outlives its sweep"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "fuserl.sweeps.worker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_job_that_fails_is_told_and_stops_no_other(tmp_path, cache, capsys):
    choices = [
        "data.sources=[llama],[nobody],[qwen2]",
        "hydra/launcher=basic",
        cache,
        f"output={tmp_path / 'out'}",
        *TINY,
    ]
    with pytest.raises(FuserlError, match="1 of 3 jobs failed") as caught:
        sweep("train", choices)
    assert "nobody" in str(caught.value)
    assert len(weights(tmp_path / "out")) == 2
    (failure,) = (tmp_path / "out").glob("*/failure.json")
    assert "nobody" in json.loads(failure.read_text())["error"]
    assert "Traceback" in (failure.parent / "log.txt").read_text()
    assert "✗" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/summary.json")}
    with pytest.raises(FuserlError, match="1 of 3"):
        sweep("train", choices)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/summary.json")} == before


def test_a_process_that_is_killed_leaves_a_reason(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "suicide.py").write_text(
        "import os, signal\ndef score(prompt, answer, reference=None):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(FuserlError, match="SIGKILL"):
        sweep(
            "train",
            [*TINY, "probe.prompts=1", "probe.score=suicide.score", "seed=0", cache, f"output={tmp_path / 'out'}"],
        )


LAUNCHERS = {
    "basic": ("hydra", ()),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ("hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1")),
    "ray": ("hydra_plugins.hydra_ray_launcher", ("+hydra.launcher.ray.init.num_cpus=2",)),
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_runs_the_same_jobs(launcher, tmp_path, cache):
    module, settings = LAUNCHERS[launcher]
    if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if launcher == "ray":
        pytest.importorskip("boto3", reason="Hydra's launcher for ray wants it")
    chosen = ("seed=0,1", cache, f"hydra/launcher={launcher}", *settings)
    if launcher == "basic":  # needs no process of its own
        sweep("train", [*TINY, *chosen, f"output={tmp_path / 'out'}"])
    else:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command(tmp_path / "out", *chosen), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    found = weights(tmp_path / "out")
    assert len(found) == 2
    assert len(set(found.values())) == 2
    one = next((tmp_path / "out").glob("train-*/model/model.safetensors"))
    assert all(value.isfinite().all() for value in load_file(one).values())


def test_a_search_is_told_the_metric(tmp_path, cache):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ranges = [
        "weights.tau=tag(log,interval(0.01,1))",
        "sweep=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra/launcher=basic",
    ]
    sweep("train", [*TINY, *ranges, cache, f"output={tmp_path / 'out'}"])
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("train-*/summary.json")]
    assert len({summary["tau"] for summary in summaries}) == 3
    found = (tmp_path / "out" / "optimization_results.yaml").read_text()
    best = min(summary["validation"]["val/nll"]["last"] for summary in summaries)
    assert f"best_value: {best}" in found


def test_pipelines_share_a_stage_and_each_has_its_own_end(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["recipe.sft_steps=2", "recipe.po_steps=2", 'recipe.measured=["probe.prompts=0"]', "hydra/launcher=basic"]
    each = f'overrides=["logger=csv","data.limit=40","data.validation_limit=8","{cache}"]'
    sweep("pipeline", ["recipe.po=fusepo_dpo,dpo_best", *short, each, "output=out"])
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("train-*/summary.json")]
    assert sorted(summary["objective"] for summary in summaries) == ["dpo_best", "fusepo_dpo", "fusesft"]
    ends = [json.loads(path.read_text())["last_stage"] for path in (tmp_path / "out").glob("pipeline-*/summary.json")]
    assert len(set(ends)) == 2

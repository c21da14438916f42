"""A sweep on a real Ray cluster: a head and a second node, each a raylet of its own, that `ray start` has started.

Hydra's launcher wants older packages than ours, so this runs in an environment of its own: `make test-ray`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="`make test-ray` installs it")
pytest.importorskip("boto3", reason="Hydra's launcher for Ray wants it: `make test-ray`")
pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="`make test-ray` installs it")

TINY = (
    "data.limit=24", "data.validation_limit=8", "batch_size=8", "max_steps=6", "logger=csv", "probe.prompts=0", "optimizer.lr=1e-3",
    "trainer.accelerator=cpu", "checkpoint.every=2", "trainer.progress_bar=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Of who uses the cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    own = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"]
        nodes = [
            subprocess.Popen([*ray, "start", "--block", *head, *common], env=own, stdout=subprocess.DEVNULL),
        ]
        own |= {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        _until_there(ray, own, 1)
        second = [f"--address=127.0.0.1:{port}"]
        nodes.append(subprocess.Popen([*ray, "start", "--block", *second, *common], env=own, stdout=subprocess.DEVNULL))
        _until_there(ray, own, 2)
        yield own
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)


def _until_there(ray: list[str], environment: dict[str, str], nodes: int) -> None:
    code = (
        "import ray, time, sys\n"
        "end = time.monotonic() + 60\n"
        "while True:\n"
        "    try:\n"
        "        ray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
        "        break\n"
        "    except ConnectionError:\n"
        "        assert time.monotonic() < end\n"
        "        time.sleep(0.5)\n"
        f"while len([n for n in ray.nodes() if n['Alive']]) < {nodes}:\n"
        "    assert time.monotonic() < end\n"
        "    time.sleep(0.2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def weights(folder: Path) -> dict[str, bytes]:
    """Of every finished job: the bytes of its weights, by the job's name."""
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("train-*/model/model.safetensors")}


def test_a_sweep_over_ray_is_the_sweep_of_this_machine(environment, tmp_path):
    chosen = (*TINY, "seed=0,1", f"cache={tmp_path / 'cache'}")
    command = [sys.executable, "-m", "fuserl", "train", "--multirun", *chosen]
    there = [*command, "hydra/launcher=ray_cluster", f"output={tmp_path / 'there'}"]
    done = subprocess.run(there, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    here = subprocess.run([*command, f"output={tmp_path / 'here'}"], env=environment, capture_output=True, text=True)
    assert here.returncode == 0, here.stderr
    assert len(weights(tmp_path / "here")) == 2
    assert weights(tmp_path / "there") == weights(tmp_path / "here")

"""A sweep on a real Ray cluster: a head and a second node, each a raylet of its own, that `ray start` has started.

Hydra's launcher wants older packages than ours, so this runs in an environment of its own: `make test-ray`.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

get_node_ip_address = pytest.importorskip("ray.util", reason="`make test-ray` installs it").get_node_ip_address
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
    address = f"{get_node_ip_address()}:{port}"
    ray = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        "--num-cpus=1",
        "--object-store-memory=80000000",
    ]
    own = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, ExitStack() as nodes:
        own |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)}  # all of a cluster must know it
        places = (
            ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"],
            [f"--address={address}"],
        )
        for number, place in enumerate(places, 1):
            nodes.enter_context(_running([*ray, *place], own))
            _until_there(own | {"RAY_ADDRESS": address}, number)
        yield own | {"RAY_ADDRESS": address}


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _until_there(environment: dict[str, str], nodes: int) -> None:
    code = (
        "import ray, time\n"
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

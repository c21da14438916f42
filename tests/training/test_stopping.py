"""SIGTERM and Ctrl-C: one more checkpoint, an orderly end, and the same run after it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py

from fuserl.errors import Stopped
from fuserl.training.checkpoints import newest_first, step_of
from fuserl.training.group_module import GroupModule

LONG = ("max_steps=12", "trainer.max_tokens=200", "checkpoint.every=5", "trainer.val_every=4", "trainer.log_every=3")


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in newest_first(folder / "checkpoints")]


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without what a clock has measured."""
    with (folder / "metrics.csv").open() as file:
        found = [{key: value for key, value in row.items() if "speed" not in key} for row in csv.DictReader(file)]
    return [row for row in found if any(value for key, value in row.items() if key != "step")]


def same(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)
    assert rows(ours) == rows(theirs)


def signalled(folder: Path, number: signal.Signals) -> threading.Thread:
    """Sends this process a signal when the first checkpoint is there."""

    def wait() -> None:
        while not steps(folder):
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "behind"), [(signal.SIGTERM, "false"), (signal.SIGTERM, "true"), (signal.SIGINT, "false")]
)
def test_a_signal_costs_no_step(number, behind, run, tmp_path, capfd):
    plain = run("fusepo_dpo", *LONG, output="plain")
    folder, more = tmp_path / "run", f"checkpoint.asynchronous={behind}"
    handler = signal.getsignal(number)
    thread = signalled(folder, number)
    with pytest.raises(Stopped) as stopped:
        run("fusepo_dpo", *LONG, more)
    thread.join()
    assert stopped.value.status == 128 + number
    assert signal.getsignal(number) == handler
    done = steps(folder)[0]
    assert 5 <= done < 12
    assert f"step {done} was the last one" in str(stopped.value)
    assert f"{number.name}: the run ends after this step" in capfd.readouterr().err
    same(run("fusepo_dpo", *LONG, more), plain)


def calls_of_validation(run, monkeypatch, probed) -> int:
    """Of a whole run."""
    calls, inner = [], GroupModule.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(GroupModule, "validation_step", lambda *given: (calls.append(1), inner(*given)))
        run("fusesft", *LONG, *probed, output="counted")
    return len(calls)


def interrupting(monkeypatch, call: int) -> None:
    """The validation step of this number asks the process to end."""
    calls, inner = [], GroupModule.validation_step

    def step(self, batch, batch_index):
        calls.append(batch_index)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, batch, batch_index)

    monkeypatch.setattr(GroupModule, "validation_step", step)


@pytest.mark.parametrize("which", [1, 2])
def test_a_signal_while_validating(which, run, monkeypatch, tmp_path):
    """At step 4, whose checkpoint is written for it; the resumed run validates there again."""
    probed = ("probe.prompts=4", "probe.max_new_tokens=4", "data.validation_limit=16")
    plain = run("fusesft", *LONG, *probed, output="plain")
    packs = calls_of_validation(run, monkeypatch, probed) // 4  # at steps 0, 4, 8 and 12
    with monkeypatch.context() as patch:
        interrupting(patch, packs * which + 1)
        with pytest.raises(Stopped, match=f"step {4 * which} was the last one"):
            run("fusesft", *LONG, *probed)
    assert steps(tmp_path / "run")[0] == 4 * which
    again = run("fusesft", *LONG, *probed)
    same(again, plain)
    assert (again / "samples.jsonl").read_text() == (plain / "samples.jsonl").read_text()


def test_two_processes_end_together_when_the_command_is_told(run, settings, tmp_path):
    """In pieces, written behind the training; then one process goes on."""
    plain, folder = run("fusepo_dpo", *LONG, output="plain"), tmp_path / "run"
    cut_up = (
        *LONG,
        "checkpoint.every=1",
        "trainer.val_every=100",
        "checkpoint.asynchronous=true",
        "trainer.timeout=60",
    )
    command = settings("fusepo_dpo", *cut_up, "trainer=fsdp2", "trainer.devices=2")
    with subprocess.Popen(
        [sys.executable, "-m", "fuserl.cli", "train", *command], stderr=subprocess.PIPE, text=True
    ) as run_:
        while not any(step >= 2 for step in steps(folder)) and run_.poll() is None:
            time.sleep(0.01)
        run_.send_signal(signal.SIGTERM)
        told = run_.stderr.read() if run_.stderr else ""
    assert run_.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told, told
    assert told.count("the run ends after this step") == 1
    done = steps(folder)[0]
    assert f"step {done} was the last one" in told
    if done < 12:
        assert not (folder / "summary.json").exists()
    again = run("fusepo_dpo", *LONG, "trainer.val_every=100")
    for name, weight in weights(again).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=0, atol=1e-9)

"""Processes that a run needs are killed, stopped, or fail: told in words within a bound, and the run goes on exactly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from forking import descendants, ended
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training import agent
from fuserl.training.agent import Ended, reason
from fuserl.training.datamodule import Split
from fuserl.training.troubles import in_words

LONG = ("max_steps=10", "trainer.max_tokens=200", "trainer.val_every=8")


@pytest.fixture(scope="module")
def undisturbed(target, tmp_path_factory) -> dict:
    """Weights of runs that nothing happened to, by their settings."""
    return {}


def newest(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("checkpoints/step-*.ckpt")), default=0)


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


def assert_same(ours: Path, theirs: Path, atol: float = 0.0) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=0, atol=atol)


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_loader_that_is_killed_is_told_and_the_run_goes_on(run, tmp_path):
    plain = run("fusesft", *LONG, output="plain")
    folder = tmp_path / "run"

    def kill() -> None:
        until(lambda: newest(folder) >= 2)
        os.kill(next(one.pid for one in multiprocessing.active_children() if one.pid), signal.SIGKILL)

    killer = meanwhile(kill)
    with pytest.raises(
        FuserlError,
        match="a loader process (is killed by signal: Killed|exited unexpectedly|ended while it handed over)",
    ) as caught:
        run("fusesft", *LONG, "trainer.num_workers=2")
    killer.join()
    assert "of 10" in caught.value.where
    assert "trainer.num_workers" in caught.value.hint
    assert 2 <= newest(folder) < 10
    assert_same(run("fusesft", *LONG, "trainer.num_workers=2"), plain)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pack_that_cannot_be_built_names_its_groups(workers, run, monkeypatch, tmp_path):
    """An error of a loader's process is told like one of this process."""
    pack = Split.pack

    def breaks(self, step, position, rank):
        if step == 2:
            raise IndexError("row 7 is not there")
        return pack(self, step, position, rank)

    monkeypatch.setattr(Split, "pack", breaks)
    with pytest.raises(FuserlError, match=r"a pack cannot be built \(IndexError: row 7 is not there\)") as caught:
        run("fusesft", f"trainer.num_workers={workers}")
    assert caught.value.where.startswith("step 2, groups mini-train-")
    assert "Traceback" not in str(caught.value)
    assert newest(tmp_path / "run") == 2, "what came before it is done"


def test_a_rank_that_is_killed_ends_the_others_with_a_word(run, settings, nursery, tmp_path):
    plain = run("fusesft", *LONG, output="plain")
    folder = tmp_path / "killed"
    overrides = settings("fusesft", *LONG, "trainer=fsdp2", output="killed")
    first = nursery.start("training.ranks", ["2", *overrides])
    until(lambda: newest(folder) >= 2)
    (other,) = descendants(first)
    os.kill(other, signal.SIGKILL)
    assert nursery.finish()
    assert "rank 0 of 2 on" in nursery.said()
    assert "has lost another rank" in nursery.said()
    assert 2 <= newest(folder) < 10
    assert nursery.run("training.ranks", ["2", *overrides])
    assert_same(folder, plain, 1e-9)


def test_a_rank_that_stops_answering_is_waited_for_so_long_and_no_longer(run, settings, nursery, tmp_path):
    plain = run("fusesft", *LONG, output="plain")
    folder = tmp_path / "hung"
    overrides = settings("fusesft", *LONG, "trainer=ddp", "trainer.timeout=2", output="hung")
    first = nursery.start("training.ranks", ["2", *overrides])
    until(lambda: newest(folder) >= 2)
    (other,) = descendants(first)
    os.kill(other, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: ended(first))
    assert time.monotonic() - stopped > 1
    assert nursery.finish()
    assert "has waited 2 s for the other ranks" in nursery.said()
    until(lambda: ended(other))
    assert nursery.run("training.ranks", ["2", *overrides])
    assert_same(folder, plain, 1e-9)


def test_the_launcher_names_the_rank_that_was_killed(run, tmp_path):
    """torchrun's agent, real processes; one process goes on."""
    plain = run("fusesft", *LONG, output="plain")
    folder = tmp_path / "run"

    def kill() -> None:
        until(lambda: newest(folder) >= 2)
        ranks = descendants(os.getpid())
        os.kill(next(one for one in ranks if b"RANK=1" in Path(f"/proc/{one}/environ").read_bytes().split(b"\0")), 9)

    killer = meanwhile(kill)
    with pytest.raises(FuserlError, match=r"training process 1 of 2 was killed \(SIGKILL\)") as caught:
        run("fusesft", *LONG, "trainer.devices=2")
    killer.join()
    assert "goes on from the last checkpoint" in caught.value.hint
    assert 2 <= newest(folder) < 10
    assert_same(run("fusesft", *LONG), plain, 1e-9)


def test_a_loader_that_is_killed_while_it_hands_over_a_pack(monkeypatch):
    """Before torch looks after it: what is told then comes from the pipe."""

    def detach(_: object) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
    loader = torch.utils.data.DataLoader(list(torch.zeros(2, 4)), batch_size=None, num_workers=1)
    with pytest.raises(FuserlError, match="a loader process ended while it handed over a pack"), in_words(1.0):
        list(loader)
    with pytest.raises(ConnectionResetError), in_words(1.0):
        detach(None)


PARENT = """
import subprocess, sys
rank = "from fuserl.training.agent import die_with_parent as d; import time; d(); print(flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", rank], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_ranks_end_with_the_launcher_that_holds_their_folder():
    """As agent and ranks do it; else they would write into a folder that the next command holds."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    rank = int(parent.stdout.readline())
    assert not ended(rank)
    parent.kill()
    until(lambda: ended(rank), 10)
    parent.communicate()


def test_ranks_end_where_the_launcher_was_killed_before_they_could_ask_for_it():
    """While they import their libraries nobody tells them."""
    code = "from fuserl.training.agent import die_with_parent as d; d(); print('lives')"
    for launcher, lives in ((os.getpid(), True), (1, False)):
        environment = os.environ | {agent.PARENT: str(launcher)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (done.stdout == "lives\n") == lives == (done.returncode != -signal.SIGKILL)


TOLD = {"what": "no such reward", "where": "row 3", "hint": "mend it", "kind": "FuserlError"}
LOST = {"what": "rank 0 has waited", "where": "training", "hint": "look", "kind": "PeersLost"}


@pytest.mark.parametrize(
    ("ranks", "says"),
    {
        "one is killed, the other loses it": ([Ended(0, 1, 5.0, LOST), Ended(1, -9, 5.0, None)], "process 1 of 2 was killed (SIGKILL)"),
        "one is killed, the others are asked to end": ([Ended(1, -9, 5.0, None), Ended(0, -15, 6.0, None)], "process 1 of 2 was killed (SIGKILL)"),
        "a signal without a name": ([Ended(0, -99, 5.0, None)], "process 0 of 2 was killed (signal 99)"),
        "NCCL gives up": ([Ended(0, -6, 5.0, None), Ended(1, -15, 6.0, None)], "process 0 of 2 was killed (SIGABRT)"),
        "one is told of bad input, the other loses it": ([Ended(0, 1, 5.0, LOST), Ended(1, 1, 6.0, TOLD)], "no such reward"),
        "one hangs, and is killed for it": ([Ended(0, 1, 5.0, LOST), Ended(1, -9, 36.0, None)], "rank 0 has waited; what hung was process 1 of 2"),
        "one fails without a word": ([Ended(1, 1, 5.0, None), Ended(0, 143, 5.0, None)], "process 1 of 2 ended with status 1"),
    }.values(),
)  # fmt: skip
def test_the_cause_is_told_and_not_what_came_of_it(ranks, says):
    assert says in reason(ranks, 2, "runs/a").what


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_timeout_of_nothing_is_refused(seconds, run):
    with pytest.raises(FuserlError, match=r"`trainer.timeout` is"):
        run("fusesft", f"trainer.timeout={seconds}")


def test_a_timeout_may_change_between_two_starts(run):
    run("fusesft", "max_steps=1")
    assert compose("train", ["trainer.timeout=60"]).trainer.timeout == 60
    run("fusesft", "max_steps=1", "trainer.timeout=60")

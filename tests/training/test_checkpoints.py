"""Checkpoints: how many stay, the best one, damage, a full disk, and writing beside the training."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import resource
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py

from fuserl import cli
from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training import space
from fuserl.training.checkpoints import Writer, copied, damage, last_whole, newest_first, step_of


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in newest_first(folder / "checkpoints")]


def content(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def flip(path: Path, share: float = 0.37) -> None:
    """One bit, at this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


def same(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay(run, keep):
    assert steps(run("fusesft", f"checkpoint.keep={keep}")) == [4, 3, 2, 1][:keep]


def test_the_last_step_has_one_whatever_the_rhythm(run):
    assert steps(run("fusesft", "checkpoint.every=3")) == [4, 3]


@pytest.mark.parametrize(("mode", "which"), [("min", min), ("max", max)])
def test_the_best_one_stays_and_becomes_the_model(mode, which, run):
    folder = run("fusesft", "checkpoint.best=val/nll", f"checkpoint.mode={mode}", "checkpoint.keep=1", "max_steps=6")
    with (folder / "metrics.csv").open() as file:
        nll = {int(row["step"]): float(row["val/nll"]) for row in csv.DictReader(file) if row["val/nll"]}
    del nll[0]
    best = which(nll, key=nll.__getitem__)
    assert json.loads((folder / "summary.json").read_text())["best_step"] == best
    assert steps(folder) == sorted({6, best}, reverse=True)
    kept = content(folder / f"checkpoints/step-{best}.ckpt")
    exported = {f"policy.{name}": weight for name, weight in weights(folder).items()}
    compared = exported.keys() & kept.keys()  # the head has another name in files
    assert len(compared) == len(kept) - 1
    for name in compared:
        torch.testing.assert_close(exported[name], kept[name], rtol=0, atol=0)


def test_an_unknown_metric_is_told_before_the_first_step(run, tmp_path):
    with pytest.raises(FuserlError, match="does not measure `val/nlll`"):
        run("fusesft", "checkpoint.best=val/nlll")
    assert not steps(tmp_path / "run")


def test_the_best_one_needs_a_validation(run):
    with pytest.raises(FuserlError, match="there is no validation"):
        run("fusesft", "checkpoint.best=val/nll", "data.validation_split=null", "data.validation_fraction=0")


def test_written_behind_is_written_alike(run):
    plain = run("fusepo_dpo", "checkpoint.keep=4", output="plain")
    behind = run("fusepo_dpo", "checkpoint.keep=4", "checkpoint.asynchronous=true", output="behind")
    same(behind, plain)
    for step in (1, 2, 3, 4):
        ours, theirs = (content(folder / f"checkpoints/step-{step}.ckpt") for folder in (behind, plain))
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=0)


def test_a_copy_does_not_follow():
    tree = {"weight": torch.zeros(3), "list": [torch.ones(2), "text"], "count": {"ready": 1}}
    copy = copied(tree)
    tree["weight"] += 1
    tree["list"].append(None)
    tree["count"]["ready"] = 2
    assert copy["weight"].tolist() == [0, 0, 0]
    assert (len(copy["list"]), copy["count"]) == (2, {"ready": 1})


@pytest.mark.parametrize("behind", [False, True])
def test_a_failed_write_is_told(behind):
    def fail(what: object) -> None:
        raise FuserlError("no room")

    writer = Writer(behind=behind)

    def written() -> None:
        writer.write({}, fail)
        writer.finish()

    with pytest.raises(FuserlError, match="no room"):
        written()
    writer.finish()  # told once


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(run, settings, tmp_path, capfd):
    from fuserl.training.run import train

    plain = run("fusepo_dpo", output="plain")
    folder = run("fusepo_dpo")
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints/step-4.ckpt"
    flip(newest)
    assert damage(newest)
    train(compose("train", settings("fusepo_dpo")))
    assert "the checkpoint of step 4 is damaged" in capfd.readouterr().err
    assert newest.with_suffix(".damaged").exists()
    same(folder, plain)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_damage_anywhere_is_seen_or_harmless(share, tmp_path):
    path = tmp_path / "step-1.ckpt"
    torch.manual_seed(0)
    whole = {"state_dict": {"weight": torch.randn(300, 100)}, "name": "x"}
    torch.save(whole, path)
    assert damage(path) is None
    flip(path, share)
    if damage(path) is None:  # between records
        assert torch.equal(content(path)["weight"], whole["state_dict"]["weight"])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert damage(path)


def test_nothing_but_damage_is_an_error(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step-{step}.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(FuserlError, match="every checkpoint of this run is damaged"):
        last_whole(tmp_path)
    assert not newest_first(tmp_path)
    assert last_whole(tmp_path) is None


def on_a_small_disk(overrides: list[str], largest: int, told: Path) -> int:
    """The status of the command in a process that may write files of so many bytes; what it says is in `told`."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        with redirect_stderr(io.StringIO()) as said:
            try:
                sys.argv = ["fuserl", "train", *overrides]
                cli.main()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                told.write_text(said.getvalue())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("behind", ["false", "true"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_spares_the_one_before(run, settings, behind, tmp_path):
    run("fusesft", output="filled")  # tokens are there
    told = tmp_path / "told"
    assert on_a_small_disk(settings("fusesft", f"checkpoint.asynchronous={behind}"), 60_000, told) == 1
    assert "error: the checkpoint could not be written" in told.read_text()
    left = list((tmp_path / "run/checkpoints").glob("step-*"))
    assert not left, "half a checkpoint is there"


def test_a_disk_that_is_full_for_the_smallest_file_is_told(run, settings, tmp_path):
    run("fusesft", output="filled")
    told = tmp_path / "told"
    assert on_a_small_disk(settings("fusesft"), 3000, told) == 1
    assert "error: the system says: File too large" in told.read_text()
    assert "the same command goes on from there" in told.read_text()


def test_no_room_is_told_before_anything_is_computed(run, monkeypatch, tmp_path, capfd):
    usage = space.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=10**5))
    with pytest.raises(FuserlError, match="0.0 GiB are free"):
        run("fusepo_dpo")
    assert "reference log-probs" not in capfd.readouterr().err

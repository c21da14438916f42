"""Loggers beside metrics.csv get the same numbers; an absent package is one clear error."""

from __future__ import annotations

import csv

import pytest
from lightning.fabric.loggers import tensorboard as lightning_tensorboard

from fuserl.errors import FuserlError
from fuserl.settings import compose


def test_tensorboard_without_its_package_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(lightning_tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(lightning_tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(FuserlError, match="`tensorboard` is not installed") as caught:
        run("fusesft", "logger=tensorboard")
    assert "pip install 'fuserl[tensorboard]'" in caught.value.hint


def test_tensorboard_holds_the_numbers_of_metrics_csv(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run("fusesft", "logger=tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/nll"):
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert written
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(written, rel=1e-6)


def test_several_loggers_at_once():
    assert set(compose("train", ["logger=[wandb,tensorboard]"]).logger) == {"wandb", "tensorboard"}

"""Loggers beside metrics.csv get the same numbers; an absent package is one clear error."""

from __future__ import annotations

import csv
import html
import json

import pytest
from lightning.fabric.loggers import tensorboard as lightning_tensorboard

from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training.tensorboard_run import as_markdown


def test_tensorboard_without_its_package_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(lightning_tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(lightning_tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(FuserlError, match="`tensorboard` is not installed") as caught:
        run("fusesft", "logger=tensorboard")
    assert "pip install 'fuserl[tensorboard]'" in caught.value.hint


def test_tensorboard_holds_the_numbers_and_answers_of_the_folder(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    few = ("data.validation_limit=8", "probe.prompts=2", "probe.max_new_tokens=4")
    folder = run("fusesft", "logger=tensorboard", *few)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/nll"):
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert written
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(written, rel=1e-6)
    summary = json.loads((folder / "summary.json").read_text())
    (final,) = events.Scalars("final/validation/val/nll/last")
    assert final.value == pytest.approx(summary["validation"]["val/nll"]["last"], rel=1e-6)
    (samples,) = events.Tensors("samples/text_summary")
    assert samples.tensor_proto.string_val[0].decode().count("\n") == 3  # heading, rule and two answers
    settings = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optimizer/lr" in settings


def test_an_answer_is_only_text():
    hostile = "<script>alert(1)</script> | [link](javascript:x) ![](http://x) `a`\n\n# title"
    table = as_markdown([[0, None, "id", None, "p", hostile, 3, False, 0.5]])
    assert table.count("\n") == 2
    assert not set("<[`!#") & set(table.splitlines()[2].replace("&#", ""))
    assert html.unescape(table.splitlines()[2]).split(" | ", 5)[5].startswith(hostile)


def test_several_loggers_at_once():
    assert set(compose("train", ["logger=[wandb,tensorboard]"]).logger) == {"wandb", "tensorboard"}

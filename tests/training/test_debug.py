"""The overlays of `conf/debug` do what their first lines say."""

from __future__ import annotations

import json

import pytest

from fuserl.settings import compose
from fuserl.training.run import train


@pytest.fixture
def debug(target, tmp_path):
    """`debug(name, *more)` trains with the overlay and gives the summary and the folder."""

    def go(name: str, *more: str):
        fixed = ["target.dtype=float64", "trainer.precision=64-true", "trainer.accelerator=cpu"]
        places = [f"target.path={target}", f"output={tmp_path / name}", f"cache={tmp_path / 'cache'}"]
        folder = train(compose("train", [f"debug={name}", *fixed, *places, "trainer.progress_bar=false", *more]))
        return json.loads((folder / "summary.json").read_text()), folder

    return go


@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo"])
def test_fast_writes_every_file_in_two_steps(debug, objective):
    summary, folder = debug("fast", f"objective={objective}")
    assert summary["steps"] == summary["steps_done"] == 2
    assert summary["prompts"] <= 16
    written = {path.name for path in folder.iterdir()}
    assert {"model", "metrics.csv", "manifest.json", "summary.json", "config.yaml", "checkpoints"} <= written
    assert "wandb" not in written


def test_overfit_learns_its_few_prompts_by_heart(debug):
    summary, _ = debug("overfit", "optimizer.lr=1e-2")
    assert summary["prompts"] == 8
    assert summary["last_train_loss"] < 0.1 * summary["first_train_loss"]

"""`debug=` and `experiment=` lay settings over `conf/train.yaml`: only ones that exist, and the command line still wins."""

from __future__ import annotations

import pytest

from fuserl.settings import compose, config_folder, decisive, leaves, plain
from fuserl.training.demo import PO, RUNS, SFT
from fuserl.training.folder import FREE

OVERLAYS = [
    f"{group}={path.stem}"
    for group in ("debug", "experiment")
    for path in sorted((config_folder() / group).glob("*.yaml"))
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_something_and_invents_no_setting(overlay):
    cfg = compose("train", [overlay])
    plainly = compose("train", [f"objective={cfg.objective.name}", "logger=csv"])
    laid, base = dict(leaves(plain(cfg))), dict(leaves(plain(plainly)))
    assert laid.keys() == base.keys(), "a misspelt key would be added in silence"
    assert laid != base


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_command_line_wins_over_an_overlay(overlay):
    cfg = compose("train", [overlay, "max_steps=7", "logger=wandb", "optimizer.lr=0.5", "data.limit=3"])
    assert (cfg.max_steps, list(cfg.logger), cfg.optimizer.lr, cfg.data.limit) == (7, ["wandb"], 0.5, 3)


@pytest.mark.parametrize("debug", [overlay for overlay in OVERLAYS if overlay.startswith("debug")])
def test_a_debug_overlay_lies_over_an_experiment(debug):
    cfg = compose("train", ["experiment=demo_fusepo_dpo", debug])
    alone = compose("train", [debug])
    assert cfg.objective.name == "fusepo_dpo"
    assert (cfg.max_steps, cfg.data.limit) == (alone.max_steps, alone.data.limit)


@pytest.mark.parametrize(("overlay", "run", "stage"), [("fusesft", "FuseSFT", SFT), ("fusepo_dpo", "FusePO-DPO", PO)])
def test_the_overlays_of_the_demo_are_what_the_demo_runs(overlay, run, stage):
    (of_demo,) = (one.overrides for one in RUNS if one.name == run)
    assert set(stage) <= set(of_demo)
    probe = ["probe.prompts=64", "probe.max_new_tokens=24", "probe.score=fuserl.miniature.tasks.score"]
    laid, typed = (
        decisive(plain(compose("train", overrides)), FREE)
        for overrides in ([f"experiment=demo_{overlay}"], ["data=miniature", "target=miniature", *probe, *of_demo])
    )
    assert laid == typed

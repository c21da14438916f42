"""Before a sweep starts: every job composed, named by what decides it, and every mistake told."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuserl.errors import FuserlError
from fuserl.settings import compose, config_folder
from fuserl.sweeps.plan import job_folder, planned

OVERLAYS = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml"))
OF_PIPELINES = ("split", "fusesft")


def folders(verb: str, *overrides: str) -> dict[str, Path]:
    return {job.label: job.folder for job in planned(verb, ["output=out", *overrides]).jobs}


def test_jobs_are_the_product_of_the_choices_and_named_by_content():
    found = folders("train", "objective=fusesft,fusepo_dpo", "weights.tau=0.1,1", "seed=0,1", "batch_size=8")
    assert len(found) == len(set(found.values())) == 8
    assert "objective=fusepo_dpo, tau=1, seed=1" in found
    assert all(path.parent == Path("out") and path.name.startswith("train-") for path in found.values())


def test_what_decides_nothing_does_not_rename_a_job():
    one = folders("train", "seed=0,1")
    other = folders(
        "train", "seed=1,0", "logger=csv", "cache=elsewhere", "trainer.progress_bar=false", "metric=test/score"
    )
    assert {label: path.name for label, path in one.items()} == {label: path.name for label, path in other.items()}
    assert folders("train", "seed=0,1", "batch_size=8")["seed=0"] != one["seed=0"]


def test_a_job_alone_has_the_folder_of_the_sweep():
    cfg = compose("train", ["seed=1", "output=out"])
    assert job_folder("train", Path("out"), cfg) == folders("train", "seed=0,1")["seed=1"]


def test_pipelines_that_begin_alike_share_their_first_stage(tmp_path):
    from fuserl.training.pipeline import jobs

    sft, po = zip(
        *(
            [job.output for _, job in jobs(compose("pipeline", [f"recipe.po={po}", "seed=1"]), tmp_path)]
            for po in ("fusepo_dpo", "fusepo_rloo")
        ),
        strict=True,
    )
    assert sft[0] == sft[1]
    assert po[0] != po[1]
    other = [job.output for _, job in jobs(compose("pipeline", ["recipe.po=fusepo_dpo", "seed=2"]), tmp_path)]
    assert other[0] != sft[0]
    assert other[1] != po[0], "a stage's name must know what it starts from"


def test_where_a_sweep_lies_does_not_rename_its_jobs(tmp_path):
    choice = "recipe.po=fusepo_dpo,fusepo_rloo"
    near, far = (planned("pipeline", [choice, f"output={folder}"]).jobs for folder in ("out", tmp_path / "elsewhere"))
    assert [job.folder.name for job in near] == [job.folder.name for job in far]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_gives_jobs(overlay):
    if overlay == "optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        assert planned("train", ["sweep=optuna", "weights.tau=tag(log,interval(0.01,1))"]).jobs is None
        return
    verb = "pipeline" if overlay in OF_PIPELINES else "train"
    objective = {"beta": ["objective=fusepo_dpo"], "pairs": ["objective=fusepo_dpo"]}.get(overlay, [])
    assert len(planned(verb, [f"sweep={overlay}", *objective]).jobs) >= 2


def test_overlays_multiply_and_the_command_line_wins():
    assert len(planned("train", ["sweep=[tau,seeds]"]).jobs) == 15
    assert len(planned("train", ["sweep=[tau,seeds]", "seed=7"]).jobs) == 5


WRONG = {
    "a verb that does not sweep": (("doctor",), "does not sweep"),
    "a setting that is none": (("train", "weights.tua=0.1,1"), "weights.tua"),
    "an option that is none": (("train", "objective=fusesft,fusesfd"), "fusesfd"),
    "one of several options lacks the setting": (("train", "objective=fusesft,fusepo_dpo", "objective.beta=1"), "objective.beta"),
    "two choices that are one": (("train", "seed=0,0"), "are one job"),
    "a range without a search": (("train", "weights.tau=interval(0,1)"), "does not support"),
    "no override": (("train", "seed"), "the command line"),
    "a recipe that is none": (("pipeline", "recipe=miniature,minature"), "minature"),
    "a stage's objective that is none": (("pipeline", "recipe.po=fusepo_dpo,fusepo_doo"), "fusepo_doo"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_before_any_job_starts(name, tmp_path):
    (verb, *overrides), told = WRONG[name]
    with pytest.raises(FuserlError) as caught:
        planned(verb, [*overrides, f"output={tmp_path / 'out'}"])
    assert told in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()

"""The verb `pipeline`: a broken recipe is told before the first stage starts; the best of a metric is the better one."""

from __future__ import annotations

import pytest

from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training.pipeline import pipeline
from fuserl.training.summary import validation_summary

BROKEN = {  # overrides of the verb, and where the error points
    "no stages": ("recipe.stages=[]", "recipe.stages"),
    "stages are a text": ("recipe.stages=x", "recipe.stages"),
    "a stage is a number": ("recipe.stages=[1]", "recipe.stages[0].name"),
    "a stage without name": ("recipe.stages=[{name:a,overrides:[]},{overrides:[]}]", "recipe.stages[1].name"),
    "a name with a folder": ("recipe.stages=[{name:a/b,overrides:[]}]", "recipe.stages[0].name"),
    "overrides of a stage are a text": ("recipe.stages=[{name:a,overrides:seed}]", "recipe.stages[0].overrides"),
    "a verb that is none": ("recipe.stages=[{name:a,verb:evalute}]", "recipe.stages[0].verb"),
    "two stages of one name": ("recipe.stages=[{name:a},{name:a}]", "recipe.stages[1].name"),
    "a folder of no stage": ("recipe.stages=[{name:a,overrides:['data.path=${stage:b}']}]", "recipe.stages"),
    "overrides for no stage": ("overrides={b:['seed=1']}", "overrides"),
    "overrides are a text": ("overrides=seed", "overrides"),
    "overrides are numbers": ("overrides=[1]", "overrides"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_names_its_place(name, tmp_path):
    override, where = BROKEN[name]
    with pytest.raises(FuserlError) as caught:
        pipeline(compose("pipeline", [override, f"output={tmp_path / 'out'}"]))
    assert caught.value.where == f"`{where}`"
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_setting_that_a_later_stage_misspells_is_told_before_the_first_starts(tmp_path):
    stages = "recipe.stages=[{name:a,overrides:[]},{name:b,overrides:['max_stepps=1']}]"
    with pytest.raises(FuserlError, match="no setting `max_stepps`"):
        pipeline(compose("pipeline", [stages, f"output={tmp_path / 'out'}"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metric", "best"), [("nll", 1.0), ("loss", 1.0), ("accuracy", 3.0), ("margin", 3.0), ("chosen_logps", 3.0)]
)
def test_the_best_of_a_metric(metric, best):
    rows = {step: {f"val/{metric}": value} for step, value in ((0, 2.0), (5, 1.0), (10, 3.0))}
    found = validation_summary(rows)[f"val/{metric}"]
    assert found == {"first": 2.0, "last": 3.0, "best": best, "best_step": 5 if best == 1.0 else 10}

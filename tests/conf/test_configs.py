"""Every YAML file is a test case."""

from __future__ import annotations

import re

import kit
import pytest
import torch
from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.objectives.diagnose import cautions
from fuserl.objectives.terms import GroupScores
from fuserl.settings import compose, config_folder, leaves
from fuserl.training.pipeline import jobs
from fuserl.training.prepare import build_objective

CONF = config_folder()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def scores() -> GroupScores:
    zeros = torch.zeros(2, 6, dtype=torch.float64)
    rewards = torch.tensor([[0.5, 0.45, 0.9, 0.85, 0.2, 0.7], [0.1, 0.05, 0.3, 0.25, 0.6, 0.0]], dtype=torch.float64)
    source = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
    return GroupScores(
        zeros, zeros, torch.full((2, 6), 3), rewards, source, rewards, torch.ones(2, 6, dtype=torch.bool)
    )


MUST_BE_GIVEN = {"distill": ["objective.distillation.path=some where"]}  # nothing is opened here


@pytest.mark.parametrize("objective", options("objective"))
@pytest.mark.parametrize("weights", options("weights"))
def test_every_objective_runs_with_every_weight_rule(objective, weights):
    cfg = compose(
        "train", [f"objective={objective}", f"weights={weights}", "target_source=c", *MUST_BE_GIVEN.get(objective, [])]
    )
    built, _ = build_objective(cfg, scores(), ("a", "b", "c"))
    totals = built.loss(scores(), progress=0.5)
    assert built.name == objective
    assert totals.sum.isfinite().all()
    assert (totals.count > 0).all()
    assert built.select(scores()).any()


@pytest.mark.parametrize("pairs", options("pairs"))
def test_every_pairing_runs(pairs):
    built, _ = build_objective(compose("train", ["objective=fusepo_dpo", f"pairs={pairs}"]), scores(), ("a", "b", "c"))
    assert built.pairs(scores()).valid.any()


@pytest.mark.parametrize("target", options("target"))
def test_every_target_has_the_same_keys(target):
    keys = OmegaConf.load(CONF / "target" / f"{target}.yaml").keys()
    assert keys == OmegaConf.load(CONF / "target" / "miniature.yaml").keys()
    assert compose("train", [f"target={target}"]).target.path


NEEDS = {  # what a recipe must be given
    "fuserl_llama31_8b": "recipe.data",
    "fusechat3_llama31_8b": "recipe.data",
    "fuserl_data": "recipe.prompts",
    "fusechat3_data": "recipe.prompts",
    "fusechat_7b": "recipe.data",
    "fusellm_llama2_7b": "recipe.data",
}
SMALL = dict.fromkeys(
    ("fusechat_miniature", "fusellm_miniature"), ("recipe.first=some where", "recipe.second=else where")
) | {"fusechat3_suite": ("recipe.base=a", "recipe.sft=b", "recipe.final=c")}


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_stage_of_every_recipe_composes(recipe):
    given = [f"{NEEDS[recipe]}=some where"] if recipe in NEEDS else SMALL.get(recipe, ())
    planned = jobs(compose("pipeline", [f"recipe={recipe}", "output=out", *given]))
    assert planned
    for number, (stage, job) in enumerate(planned, 1):
        assert job.output == f"out/{number:02d}_{stage.name}"
        if stage.verb == "train":
            built, _ = build_objective(job, scores(), ("a", "b", "c"))
            assert not cautions(built)


@pytest.mark.parametrize("recipe", NEEDS)
def test_a_published_recipe_asks_for_its_input_and_says_where_each_value_is_from(recipe):
    with pytest.raises(FuserlError, match=rf"`{NEEDS[recipe]}` must be given"):
        compose("pipeline", [f"recipe={recipe}"])
    path = CONF / "recipe" / f"{recipe}.yaml"
    values = [line for line in path.read_text().splitlines() if re.match(r"\s+- '?[\w.]+=", line)]
    unmarked = [line for line in values if not re.search(r"# \[(paper|inferred|unknown)\]", line)]
    wiring = ("${recipe.", "${stage:", "data=own")
    assert all(any(sign in line for sign in wiring) for line in unmarked), unmarked


@pytest.mark.parametrize("logger", options("logger"))
def test_every_logger_composes(logger):
    assert compose("train", [f"logger={logger}"]) is not None


@pytest.mark.parametrize("verb", ["demo", "plan", "pipeline", "doctor"])
def test_every_verb_composes(verb):
    assert compose(verb, []) is not None


@pytest.mark.parametrize("objective", options("objective"))
def test_a_user_can_set_at_most_90_things(objective):
    """`_target_`, `_partial_` and copies of another setting are wiring, not knobs."""
    tree = OmegaConf.to_container(
        compose("train", [f"objective={objective}", *MUST_BE_GIVEN.get(objective, [])]), resolve=False
    )
    copies = re.compile(r"\$\{[.\w]+\}")
    knobs = [
        key
        for key, value in leaves(tree)
        if not key.endswith(("_target_", "_partial_")) and not copies.fullmatch(str(value))
    ]
    assert len(knobs) <= 90, f"{len(knobs)} knobs; derive one, or delete one, before adding one"


def test_two_data_files_differ_in_their_path_alone():
    own, miniature = (
        dict(OmegaConf.to_container(OmegaConf.load(CONF / f"data/{n}.yaml"))) for n in ("own", "miniature")
    )
    assert own.pop("path") != miniature.pop("path")
    assert own == miniature


def test_the_configuration_ships_in_the_wheel():
    text = (kit.ROOT / "pyproject.toml").read_text()
    assert '"conf" = "fuserl/conf"' in text

"""Every file that `fuserl score` can be given composes, and names functions that take what it says."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hydra.utils import get_object

from fuserl.rewards.combine import Combination, named
from fuserl.rewards.made import made
from fuserl.settings import compose, config_folder, plain

CONF = config_folder()
GIVEN = {  # what must be given
    "function": ["rewards.function.path=fuserl.miniature.tasks.score"],
    "reward_model": ["rewards.reward_model.path=x"],
    "judge": ["rewards.judge.source.path=x"],
    "judge_pairwise": ["rewards.judge_pairwise.source.path=x"],
    "judge_games": ["rewards.judge_games.source.path=x"],
    "judge_turns": ["rewards.judge_turns.source.path=x"],
    "weighted": ["combine.weights={a: 1.0}"],
    "source": ["rewards.judge_pairwise.against.source=a"],
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str, given: str = "") -> dict[str, Any]:
    return plain(compose("score", ["data.path=x", *overrides, *GIVEN.get(given, [])]))


def targets(node: Any):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


def check(node: dict[str, Any], **more: Any) -> None:
    for one in targets(node):
        arguments = {key: value for key, value in one.items() if not key.startswith("_")}
        if one is node:
            arguments = {key: value for key, value in arguments.items() if key != "domains"} | more
        signature = inspect.signature(get_object(one["_target_"]))
        (signature.bind_partial if one.get("_partial_") else signature.bind)(**arguments)


@pytest.mark.parametrize("reward", options("reward"))
def test_every_scorer_names_what_takes_its_settings(reward):
    node = composed(f"reward={reward}", given=reward)["rewards"][reward]
    assert node["domains"] is None
    check(node, name=reward)


def test_all_scorers_stand_in_one_command():
    more = [change for name in options("reward") for change in GIVEN.get(name, [])]
    assert set(composed(f"reward=[{','.join(options('reward'))}]", *more)["rewards"]) == set(options("reward"))


@pytest.mark.parametrize("combine", options("combine"))
def test_every_combination_can_be_made(combine):
    way = named(made(composed(f"combine={combine}", given=combine)["combine"], "combine"), ["a"])
    assert isinstance(way, Combination)
    assert way.reads()


@pytest.mark.parametrize("form", options("form"))
@pytest.mark.parametrize("classifier", options("classifier"))
def test_every_form_and_classifier_fits_a_reward_model(form, classifier):
    chosen = [f"form@rewards.reward_model.form={form}", f"classifier@rewards.reward_model.classifier={classifier}"]
    check(composed("reward=reward_model", *chosen, given="reward_model")["rewards"]["reward_model"], name="rm")


@pytest.mark.parametrize("against", options("against"))
@pytest.mark.parametrize("engine", options("engine"))
def test_every_opponent_and_engine_fits_a_judge(against, engine):
    chosen = [f"against@rewards.judge_pairwise.against={against}", f"engine@rewards.judge_pairwise.engine={engine}"]
    more = [*GIVEN["judge_pairwise"], *GIVEN.get(against, [])]
    check(composed("reward=judge_pairwise", *chosen, *more)["rewards"]["judge_pairwise"], name="judge")


def test_every_setting_of_score_says_what_it_is():
    for path in [CONF / "score.yaml", *(CONF / "combine").glob("*.yaml"), *(CONF / "classifier").glob("*.yaml")]:
        lines = path.read_text().splitlines()
        silent = [
            line
            for line in lines
            if line and not line.startswith(("hydra:", "  ", "defaults:", "_", "#")) and "#" not in line and ":" in line
        ]
        assert all(line.rstrip().endswith(":") for line in silent), (path.name, silent)

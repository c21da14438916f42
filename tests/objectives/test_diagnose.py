"""Data that an objective cannot learn from is refused, with what does apply."""

from __future__ import annotations

import pytest
import torch
from objectives.tables import NAMES, NAN, hand_table, objective, random_table

from fuserl.errors import FuserlError
from fuserl.objectives.diagnose import cautions, require_applicable
from fuserl.objectives.terms import GroupScores, Objective

SINGLE = hand_table([[0.9, 0.4, 0.1], [0.2, 0.8, 0.7]], [[0, 1, 2], [0, 1, 2]])
ONE = hand_table([[0.9], [0.2]], [[0], [1]])
UNSCORED = hand_table([[NAN] * 6], [[0, 0, 0, 1, 1, 1]])
EQUAL = hand_table([[0.5] * 6, [1.0] * 6], [[0, 0, 0, 1, 1, 1]] * 2)
PREFERENCE = ("dpo_best", "fusepo_dpo", "fusepo_simpo", "fusepo_rloo")
WRPO = ("wrpo", "wrpo_simpo", "wrpo_ipo")


def refusal(name: str, scores, *settings: str) -> FuserlError:
    with pytest.raises(FuserlError) as error:
        require_applicable(objective(name, *settings), scores)
    assert name in error.value.where
    assert error.value.hint
    return error.value


def learns(built: Objective, scores: GroupScores) -> bool:
    """Whether the data is let through, and weighs something then."""
    require_applicable(built, scores)
    return bool((built.loss(scores, progress=0.0).weight > 0).any())


@pytest.mark.parametrize("name", NAMES)
def test_good_data_passes(name: str) -> None:
    assert learns(objective(name), random_table(0))


BETAS = {  # settings, and what the caution says of them; None for no caution
    "SimPO with a value of DPO": (["fusepo_simpo", "objective.beta=0.1"], "per nat a token"),
    "WRPO-SimPO with a value of DPO": (["wrpo_simpo", "objective.beta=0.1"], "per nat a token"),
    "SimPO at the limit": (["fusepo_simpo", "objective.beta=1"], None),
    "a mean a token with the value of a sum": (["fusepo_dpo", "objective.normalize=length"], "per nat a token"),
    "the same on one pair": (["dpo_best", "objective.normalize=length", "objective.beta=0.99"], "per nat a token"),
    "a mean a token with its own value": (["fusepo_dpo", "objective.normalize=length", "objective.beta=10"], None),
    "a sum with the value of a mean": (["fusepo_dpo", "objective.beta=10"], "the summed log-ratio"),
    "the same on one pair, and just above": (["dpo_best", "objective.beta=1.01"], "the summed log-ratio"),
    "WRPO with a value of SimPO": (["wrpo", "objective.beta=2.5"], "the summed log-ratio"),
    "a sum at the limit": (["wrpo", "objective.beta=1"], None),
    **{f"{name} as it comes": ([name], None) for name in NAMES},
}


@pytest.mark.parametrize("case", BETAS)
def test_a_beta_of_another_unit_is_cautioned_against(case: str) -> None:
    settings, said = BETAS[case]
    found = cautions(objective(*settings))
    assert len(found) == (said is not None)
    if said:
        assert said in found[0]
        assert settings[0] in found[0]
        assert "`objective.beta=" in found[0]


@pytest.mark.parametrize("name", PREFERENCE)
def test_a_single_sample_a_source(name: str) -> None:
    error = refusal(name, SINGLE)
    assert "single sample" in error.what
    for way_out in ("pairs=across_sources", "objective=sft_best", "objective=fusesft", "objective.baseline=prompt"):
        assert way_out in error.hint


def test_the_ways_out_for_single_samples_work() -> None:
    assert learns(objective("fusepo_dpo", "pairs=across_sources"), SINGLE)
    assert learns(objective("fusepo_simpo", "pairs=across_sources"), SINGLE)
    assert learns(objective("fusepo_rloo", "objective.baseline=prompt"), SINGLE)
    assert learns(objective("sft_best"), SINGLE)
    assert learns(objective("fusesft"), SINGLE)


@pytest.mark.parametrize("name", PREFERENCE)
def test_a_single_response_a_prompt(name: str) -> None:
    assert "single response" in refusal(name, ONE).what
    assert learns(objective("sft_best"), ONE)


@pytest.mark.parametrize("name", NAMES)
def test_no_rewards(name: str) -> None:
    assert "no response has a reward" in refusal(name, UNSCORED).what
    require_applicable(objective("fusesft", "weights=uniform", "objective.size=6"), UNSCORED)


@pytest.mark.parametrize("name", PREFERENCE)
def test_equal_rewards(name: str) -> None:
    assert "all rewards of every prompt are equal" in refusal(name, EQUAL).what
    require_applicable(objective("fusesft", "weights=uniform"), EQUAL)


@pytest.mark.parametrize("name", WRPO)
@pytest.mark.parametrize(
    "scores",
    [
        hand_table([[0.9, 0.1, 0.3]], [[1, 1, 2]]),
        hand_table([[0.9, 0.1, 0.3]], [[1, 1, 0]]),
        hand_table([[0.9, 0.3, 0.3]], [[1, 0, 0]]),
        hand_table([[0.9, 0.3]], [[0, 0]]),
    ],
    ids=["no target", "one sample", "equal samples", "no other source"],
)
def test_wrpo_without_its_triples(name: str, scores) -> None:
    error = refusal(name, scores)
    assert "WRPO" in error.what
    assert "target_source=NAME" in error.hint


def test_sources_that_disagree_only_with_each_other() -> None:
    scores = hand_table([[0.9, 0.9, 0.1, 0.1]], [[0, 0, 1, 1]])
    assert "no source has two samples of different reward" in refusal("fusepo_dpo", scores).what


def test_a_window_that_lets_nothing_through() -> None:
    error = refusal("dpo_best", random_table(0), "objective.pairs.min_gap=50")
    assert "objective.pairs.min_gap" in error.hint


def test_weights_that_are_not_there_or_negative() -> None:
    scores = random_table(0)
    none = scores._replace(given=torch.full_like(scores.given, NAN))
    for name in ("fusesft", "fusepo_dpo"):
        assert "weight 0" in refusal(name, none, "weights=given").what
    assert "negative" in refusal("fusesft", scores._replace(given=-scores.given), "weights=given").what


def test_no_responses_at_all() -> None:
    scores = random_table(0)
    nothing = scores._replace(valid=torch.zeros_like(scores.valid))
    assert "no responses" in refusal("fusesft", nothing).what

"""Weight rules: numbers from the papers' notes, edges, and what all rules share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.objectives import weights

NAN = float("nan")
RULES = {
    "softmax": lambda *columns: weights.softmax(*columns, tau=0.1),
    "uniform": weights.uniform,
    "best": weights.best,
    "given": weights.given,
    "rank": weights.rank,
}


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def weigh(name: str, values: torch.Tensor, valid: torch.Tensor | None = None, given: torch.Tensor | None = None):
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    return RULES[name](values, valid, torch.full_like(values, NAN) if given is None else given)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (1.0, [0.2538, 0.2512, 0.2487, 0.2463]),
        (0.1, [0.2887, 0.2612, 0.2363, 0.2138]),
        (0.01, [0.6439, 0.2369, 0.0871, 0.0321]),
    ],
)
def test_softmax_of_a_reward_models_narrow_scores(tau: float, expected: list[float]) -> None:
    values = row(0.15, 0.14, 0.13, 0.12)
    ours = weights.softmax(values, values > 0, values, tau=tau)
    assert_close(ours, row(*expected), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_every_rule_sums_to_one_over_what_is_there(name: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values, given = (torch.rand(5, 6, generator=random, dtype=torch.float64) for _ in range(2))
    valid = torch.rand(5, 6, generator=random) < 0.6
    ours = weigh(name, values.masked_fill(~valid, NAN), valid, given.masked_fill(~valid, NAN))
    assert (ours >= 0).all()
    assert (ours[~valid] == 0).all()
    assert_close(ours.sum(dim=1), valid.any(dim=1).double())


@pytest.mark.parametrize("name", ["softmax", "best", "rank"])
def test_unscored_entries_weigh_nothing(name: str) -> None:
    assert_close(weigh(name, row(-5.0, NAN, -5.0)), row(0.5, 0.0, 0.5))
    assert_close(weigh(name, row(NAN, NAN)), row(0.0, 0.0))


def test_softmax_does_not_overflow() -> None:
    assert_close(weights.softmax(row(1e6, -1e6, 1e6), row(1, 1, 1) > 0, row(0, 0, 0), tau=1e-6), row(0.5, 0.0, 0.5))
    assert_close(weights.softmax(row(-900.0, -901.0), row(1, 1) > 0, row(0, 0), tau=1.0), row(0.7310586, 0.2689414))


@pytest.mark.parametrize("tau", [0.0, -1.0, NAN])
def test_softmax_refuses_a_temperature_that_is_not_positive(tau: float) -> None:
    with pytest.raises(FuserlError, match=r"weights\.tau"):
        weights.softmax(row(1.0), row(1.0) > 0, row(1.0), tau=tau)


def test_rank_and_best_share_between_equals() -> None:
    assert_close(weigh("rank", row(0.9, 0.1, 0.9, 0.5)), row(3.5, 1, 3.5, 2) / 10)
    assert_close(weigh("best", row(0.9, 0.1, 0.9, 0.5)), row(0.5, 0, 0.5, 0))


def test_given_weights_are_normalised_over_what_is_there() -> None:
    given = row(3.0, 1.0, NAN, 4.0)
    valid = torch.tensor([[True, True, True, False]])
    assert_close(weigh("given", row(0, 0, 0, 0), valid, given), row(0.75, 0.25, 0, 0))
    assert_close(weigh("given", row(0.5, 0.6)), row(0.0, 0.0))


def test_auto_tau_is_the_median_spread() -> None:
    rewards = torch.tensor([[0.1, 0.3, NAN], [0.0, 1.0, 0.5], [0.4, 0.8, 0.5], [9.0, NAN, NAN]], dtype=torch.float64)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    assert weights.auto_tau(rewards, valid) == pytest.approx(0.4)
    assert weights.auto_tau(rewards[:2], valid[:2]) == pytest.approx(0.6), "of an even number, the middle of the two"
    hidden = valid.clone()
    hidden[1, 1] = False  # an absent extreme does not widen the spread
    assert weights.auto_tau(rewards, hidden) == pytest.approx(0.4)


def test_auto_tau_falls_back_on_prompts_whose_rewards_differ() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert weights.auto_tau(rewards, rewards >= 0) == 1.0


@pytest.mark.parametrize("values", [[[1.0, 1.0]], [[NAN, NAN]], [[1.0, NAN]]], ids=str)
def test_auto_tau_without_any_spread_is_an_error(values: list[list[float]]) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    with pytest.raises(FuserlError, match="nothing to set the temperature by"):
        weights.auto_tau(rewards, torch.ones_like(rewards, dtype=torch.bool))

"""Bradley-Terry: against scikit-learn's logistic regression, on planted strengths and biases, where everything is won."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.bradley_terry import Games, ends, fit, logistic, resampled

FOUR_ERRORS = 4.0  # a planted number is missed by more in one of 15,000 simulations


def games_of(first: Any, second: Any, share: Any, **more: Any) -> Games:
    """Games with weight 1, each of a prompt of its own, without covariates."""
    number = len(share)
    whole = {"weight": np.ones(number), "prompt": np.arange(number), "covariates": np.zeros((number, 0))} | more
    return Games(np.asarray(first), np.asarray(second), np.asarray(share, dtype=float), **whole)


def drawn(seed: int, *, models: int, number: int, covariates: int, ties: bool = True) -> Games:
    """Games between models of any strength, some tied, weights 1 and 3, two a prompt."""
    rng = np.random.default_rng(seed)
    first = rng.integers(models, size=number)
    second = (first + rng.integers(1, models, size=number)) % models
    looks = rng.normal(size=(number, covariates))
    strengths, weights = rng.normal(size=models), rng.normal(size=covariates)
    share = (rng.random(number) < logistic(strengths[first] - strengths[second] + looks @ weights)).astype(float)
    if ties:
        share[rng.random(number) < 0.2] = 0.5
    return Games(first, second, share, rng.choice([1.0, 3.0], size=number), np.arange(number) // 2, looks)


def by_scikit_learn(games: Games, models: int, anchor: int) -> tuple[ndarray, ndarray]:
    """Strengths less the anchor's, and coefficients: a tie is two rows with half the weight."""
    from sklearn.linear_model import LogisticRegression

    rows = np.arange(len(games.share))
    design = np.zeros((len(rows), models))
    design[rows, games.first] += 1
    design[rows, games.second] -= 1
    design = np.concatenate([np.delete(design, anchor, axis=1), games.covariates], axis=1)
    model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    wins = np.concatenate([np.ones(len(rows)), np.zeros(len(rows))])
    weights = np.concatenate([games.weight * games.share, games.weight * (1 - games.share)])
    kept = weights > 0
    found = model.fit(np.concatenate([design, design])[kept], wins[kept], sample_weight=weights[kept]).coef_[0]
    return np.insert(found[: models - 1], anchor, 0.0), found[models - 1 :]


@pytest.mark.parametrize("models", [2, 3, 8])
@pytest.mark.parametrize("covariates", [0, 1, 4])
def test_agrees_with_scikit_learn_to_six_digits(models, covariates):
    pytest.importorskip("sklearn")
    games, anchor = drawn(models + 10 * covariates, models=models, number=400, covariates=covariates), models - 1
    strengths, coefficients = by_scikit_learn(games, models, anchor)
    found = fit(games, models=models, anchor=anchor)
    assert not found.separated[0]
    np.testing.assert_allclose(found.strengths[0], strengths, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.coefficients[0], coefficients, atol=1e-6, rtol=0)


def gradient(games: Games, strengths: ndarray, coefficients: ndarray, models: int) -> ndarray:
    """Of the log-likelihood, by a loop over games."""
    whole = np.zeros(models + len(coefficients))
    for a, b, share, weight, look in zip(
        games.first, games.second, games.share, games.weight, games.covariates, strict=True
    ):
        left = weight * (share - 1 / (1 + math.exp(-(strengths[a] - strengths[b] + look @ coefficients))))
        whole[a] += left
        whole[b] -= left
        whole[models:] += left * look
    return whole


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), models=st.integers(2, 5), covariates=st.integers(0, 3))
def test_nothing_is_left_of_the_gradient_at_the_maximum(seed, models, covariates):
    games = drawn(seed, models=models, number=120, covariates=covariates)
    found = fit(games, models=models, anchor=0)
    if not found.separated[0]:
        left = gradient(games, found.strengths[0], found.coefficients[0], models)
        assert np.abs(left).max() < 1e-8


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), models=st.integers(2, 4), covariates=st.integers(0, 2))
def test_laws(seed, models, covariates):
    games = drawn(seed, models=models, number=100, covariates=covariates)
    found = fit(games, models=models, anchor=0)
    if found.separated[0]:
        return
    order = np.random.default_rng(seed).permutation(100)
    same = {
        "told from the other side": games.swapped(),
        "in another order": Games(*(column[order] for column in games)),
        "all weights doubled": games._replace(weight=2 * games.weight),
        "a tie as two halves": Games(*(np.concatenate([column, column]) for column in games))._replace(
            share=np.concatenate([np.ceil(games.share), np.floor(games.share)])
        ),
    }
    for what, one in same.items():
        other = fit(one, models=models, anchor=0)
        np.testing.assert_allclose(other.strengths, found.strengths, atol=1e-7, err_msg=what)
        np.testing.assert_allclose(other.coefficients, found.coefficients, atol=1e-7, err_msg=what)
    moved = fit(games, models=models, anchor=1)
    np.testing.assert_allclose(moved.strengths[0] - moved.strengths[0, 0], found.strengths[0], atol=1e-7)
    lost = fit(games._replace(share=1 - games.share, covariates=-games.covariates), models=models, anchor=0)
    np.testing.assert_allclose(lost.strengths, -found.strengths, atol=1e-7)


@given(
    shares=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30),
    strong=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_of_two_models_the_win_rate_is_the_weighted_share(shares, strong):
    weight = np.where(strong[: len(shares)], 3.0, 1.0)
    games = games_of([1] * len(shares), [0] * len(shares), shares, weight=weight)
    found = fit(games, models=2, anchor=0)
    assert found.win_rates()[0, 1] == pytest.approx(np.average(shares, weights=weight), abs=1e-9)
    assert found.points()[0, 0] == 1000.0


def test_points_are_those_of_elo():
    games = games_of([1] * 11, [0] * 11, [1.0] * 10 + [0.0])
    assert fit(games, models=2, anchor=0).points()[0, 1] == pytest.approx(1400.0)


def test_planted_strengths_are_recovered():
    planted = np.array([0.0, 0.4, -0.7, 1.5, 1.1])
    rng = np.random.default_rng(5)
    number = 20_000
    first = rng.integers(5, size=number)
    second = (first + rng.integers(1, 5, size=number)) % 5
    chance = logistic(planted[first] - planted[second])
    games = games_of(first, second, rng.random(number) < chance)
    found = fit(games, models=5, anchor=0).strengths[0]
    design = np.delete(np.eye(5)[first] - np.eye(5)[second], 0, axis=1)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (chance * (1 - chance))[:, None]))))
    assert (np.abs(found[1:] - planted[1:]) < FOUR_ERRORS * errors).all()
    assert errors.max() < 0.05, "the test would see a tenth"


def planted_bias(number: int, *, strength: float, bias: float, longer: float, seed: int) -> Games:
    """A model whose answers are longer, a judge who likes length: two games a prompt."""
    rng = np.random.default_rng(seed)
    looks = np.repeat(rng.normal(longer, 1.0, size=number), 2)[:, None]
    share = rng.random(2 * number) < logistic(strength + bias * looks[:, 0])
    ones = np.ones(2 * number, dtype=int)
    return games_of(ones, 0 * ones, share, prompt=np.repeat(np.arange(number), 2), covariates=looks)


def test_a_planted_length_bias_is_recovered_and_taken_out():
    games = planted_bias(5000, strength=-0.3, bias=0.8, longer=0.7, seed=3)
    found = fit(games, models=2, anchor=0)
    chance = logistic(-0.3 + 0.8 * games.covariates[:, 0])
    design = np.column_stack([np.ones(10_000), games.covariates])
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (chance * (1 - chance))[:, None]))))
    missed = np.abs([found.strengths[0, 1] + 0.3, found.coefficients[0, 0] - 0.8]) / errors
    assert (missed < FOUR_ERRORS).all()
    plain = fit(games._replace(covariates=np.zeros((10_000, 0))), models=2, anchor=0)
    assert plain.win_rates()[0, 1] > 0.53 > 0.5 > found.win_rates()[0, 1], "the judge was won by length alone"


def test_the_interval_holds_what_was_planted_as_often_as_it_says():
    held, runs = 0, 120
    for seed in range(runs):
        games = planted_bias(150, strength=0.5, bias=0.0, longer=0.0, seed=seed)
        games = games._replace(covariates=np.zeros((300, 0)), share=np.repeat(games.share[::2], 2))  # both games agree
        low, high = ends(resampled(games, models=2, anchor=0, resamples=200, seed=seed).win_rates())
        held += low[1] <= 1 / (1 + math.exp(-0.5)) <= high[1]
    error = math.sqrt(0.95 * 0.05 / runs)
    assert abs(held / runs - 0.95) < 3 * error + 0.02, "200 draws make the ends themselves uncertain"


def test_both_games_of_a_prompt_are_drawn_together():
    agreeing = np.repeat([1.0, 0.0], 100)  # 100 prompts, both games alike
    together = games_of([1] * 200, [0] * 200, agreeing, prompt=np.repeat(np.arange(100), 2))
    apart = together._replace(prompt=np.arange(200))
    widths = []
    for games in (together, apart):
        low, high = ends(resampled(games, models=2, anchor=0, resamples=2000, seed=0).win_rates())
        widths.append(high[1] - low[1])
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(2), rel=0.1)


def test_draws_are_fits_of_their_games():
    games = drawn(7, models=3, number=60, covariates=2)
    found = resampled(games, models=3, anchor=0, resamples=20, seed=4)
    times = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=20)
    for draw in range(20):
        rows = np.repeat(np.arange(60), times[draw][games.prompt])
        slow = fit(Games(*(column[rows] for column in games)), models=3, anchor=0)
        if slow.separated[0] or found.separated[draw]:
            assert slow.separated[0] == found.separated[draw]
            continue
        np.testing.assert_allclose(found.strengths[draw], slow.strengths[0], atol=1e-6)
        np.testing.assert_allclose(found.coefficients[draw], slow.coefficients[0], atol=1e-6)


@pytest.mark.parametrize(("share", "rate", "end"), [(1.0, 1.0, np.inf), (0.0, 0.0, -np.inf)])
@pytest.mark.parametrize("number", [1, 2, 1000])
def test_who_wins_everything_is_endlessly_strong_and_wins_all(share, rate, end, number):
    games = games_of([1] * number, [0] * number, [share] * number)
    found = fit(games, models=2, anchor=0)
    assert (found.win_rates()[0, 1], found.strengths[0, 1], bool(found.separated[0])) == (rate, end, True)
    low, high = ends(resampled(games, models=2, anchor=0, resamples=50, seed=0).win_rates())
    assert (low[1], high[1]) == (rate, rate)


def test_a_covariate_that_foretells_everything_is_said():
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(300, 1))
    found = fit(games_of([1] * 300, [0] * 300, looks[:, 0] > 0, covariates=looks), models=2, anchor=0)
    assert found.separated[0]
    assert np.isfinite(found.win_rates()).all()


def test_a_covariate_that_never_differs_says_nothing():
    games = drawn(2, models=2, number=80, covariates=1)
    constant = games._replace(covariates=np.concatenate([games.covariates, np.zeros((80, 1))], axis=1))
    one, two = (fit(given, models=2, anchor=0) for given in (games, constant))
    np.testing.assert_allclose(two.strengths, one.strengths, atol=1e-7)
    assert two.coefficients[0, 1] == 0.0


def test_what_cannot_be_told_is_refused():
    with pytest.raises(FuserlError, match="no game"):
        fit(games_of(np.zeros(0, int), np.zeros(0, int), []), models=2, anchor=0)
    with pytest.raises(FuserlError, match="model 2 has met nobody"):
        fit(games_of([0, 2], [1, 3], [1.0, 0.5]), models=4, anchor=0)


def test_ends_leave_out_what_has_no_value_and_take_the_nearer_of_infinite_ones():
    values = np.concatenate([np.arange(101.0), [np.nan] * 10])[:, None]
    low, high = ends(values)
    assert (low[0], high[0]) == (2.5, 97.5)
    low, high = ends(np.array([[1.0], [np.inf]]))
    assert (low[0], high[0]) == (1.0, np.inf)
    assert np.isnan(ends(np.array([[np.nan]]))[0][0])

"""Planted biases and variances come back from the estimators."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import fuserl
from fuserl.errors import FuserlError
from fuserl.evaluation.signal import (
    Signals,
    band,
    correlation,
    fused,
    if_independent,
    signals,
    weights_over,
    with_other_errors,
)
from fuserl.records.formats import read_groups

MINIATURE = Path(fuserl.__file__).parent / "miniature/data"
SOURCES = ("gemma2", "llama", "mistral", "qwen2")


def planted(num: int = 4000, *, shared: float = 0.0, seed: int = 0) -> Signals:
    """Four sources with biases 0, 0.1, 0.2, 0.3 and errors of deviation 0.2, correlated by `shared`."""
    draw = np.random.default_rng(seed)
    truth = draw.uniform(size=(num, 4))
    common = draw.normal(size=(num, 1))
    noise = 0.2 * (np.sqrt(shared) * common + np.sqrt(1 - shared) * draw.normal(size=(num, 4)))
    return Signals(truth + noise + np.array([0.0, 0.1, 0.2, 0.3]), truth)


def test_planted_biases_lie_in_their_bands():
    value, low, high = band(planted().error.T, np.mean)
    assert value == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.01)
    assert ((low < [0.0, 0.1, 0.2, 0.3]) & (high > [0.0, 0.1, 0.2, 0.3])).all()
    assert (high - low) == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(4000), rel=0.15)


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_planted_correlation_comes_back(shared):
    found = correlation(planted(shared=shared).error)
    assert found[~np.eye(4, dtype=bool)] == pytest.approx(shared, abs=0.05)


def test_the_formula_for_independent_errors_holds_for_them_and_fails_for_shared_ones():
    uniform = np.full((4000, 4), 0.25)
    alone, together = planted(), planted(shared=0.5)
    assert fused(alone.error, uniform).var() == pytest.approx(0.04 / 4, rel=0.1)
    assert if_independent(alone.error, uniform) == pytest.approx(0.04 / 4, rel=0.1)
    assert fused(together.error, uniform).var() == pytest.approx(0.04 * (0.5 + 0.5 / 4), rel=0.1)
    assert if_independent(together.error, uniform) == pytest.approx(0.04 / 4, rel=0.1)


def test_weights_that_see_the_errors_choose_them_and_others_do_not():
    flat = planted()
    flat = Signals(flat.error - flat.error.mean(axis=0), np.zeros_like(flat.truth))  # errors alone tell sources apart
    seeing = fused(flat.error, weights_over(flat.reward, [0.05]))[0]
    other = fused(flat.error, weights_over(with_other_errors(flat, seed=1), [0.05]))[0]
    assert seeing.mean() > 0.1
    assert abs(other.mean()) < 0.02


def test_the_ends_of_the_temperature_are_best_and_uniform():
    table = planted(50)
    sharp, flat = weights_over(table.reward, [1e-6, 1e6])
    assert sharp.argmax(axis=1).tolist() == table.reward.argmax(axis=1).tolist()
    assert flat == pytest.approx(0.25, abs=1e-5)


def test_the_miniature_is_read_best_by_reward():
    groups = list(islice(read_groups(MINIATURE, split="validation"), 30))
    best, first = (signals(groups, SOURCES, field="score", best=best) for best in (True, False))
    assert (best.reward >= first.reward).all()
    by_hand = max((one for one in groups[0].responses if one.source == "llama"), key=lambda one: one.reward or 0.0)
    assert (best.reward[0, 1], best.truth[0, 1]) == (by_hand.reward, by_hand.extra["score"])


def test_data_without_truth_is_refused():
    groups = list(islice(read_groups(MINIATURE, split="validation"), 3))
    with pytest.raises(FuserlError, match="no prompt has answers"):
        signals(groups, SOURCES, field="no_such_field")

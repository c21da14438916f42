"""Reading overfitting curves."""

from __future__ import annotations

import numpy as np
import pytest

from fuserl.evaluation.curves import by_epoch, effective_number, gap, rise, shares_of_sources, stopping_point

CURVE = [(0, 2.0), (4, 1.0), (8, 1.5), (12, 0.9), (16, 1.2)]


def test_early_stopping_keeps_the_lowest_point_that_its_patience_can_see():
    assert stopping_point(CURVE, patience=1) == (4, 1.0)
    assert stopping_point(CURVE, patience=2) == (12, 0.9)
    assert stopping_point(CURVE[:1], patience=1) == (0, 2.0)
    falling = [(step, -float(step)) for step in range(5)]
    assert stopping_point(falling, patience=1) == falling[-1]


def test_a_curve_rises_from_its_lowest_point():
    assert rise(CURVE) == pytest.approx(0.3)
    assert rise(CURVE[:2]) == 0


def test_the_gap_is_taken_where_both_curves_are():
    assert gap([(4, 0.5), (8, 0.25)], CURVE) == [(4, 0.5), (8, 1.25)]


def test_epochs_end_at_their_last_step_and_a_first_validation_belongs_to_the_first():
    assert by_epoch([(step, float(step)) for step in range(1, 8)], 3) == [(3, 2.0), (6, 5.0), (9, 7.0)]


@pytest.mark.parametrize("num", [1, 3, 7])
def test_alike_weights_count_as_many_and_scale_does_not_matter(num):
    weights = np.zeros((2, 8))
    weights[:, :num] = [[1.0], [0.01]]
    assert effective_number(weights) == pytest.approx([num, num])


def test_weights_move_together_when_their_source_is_one():
    weights, source = np.array([[0.5, 0.25, 0.25]]), np.array([[1, 0, 1]])
    assert shares_of_sources(weights, source, 3).tolist() == [[0.25, 0.75, 0.0]]
    assert effective_number(shares_of_sources(weights, source, 3))[0] < effective_number(weights)[0]

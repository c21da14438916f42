"""Arena-Hard's numbers from verdicts and styles: places, weights, a planted bias of the judge, intervals over questions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fuserl.evaluation.benchmarks.arena_numbers import Counting, Played, mean_tokens, numbers_of
from fuserl.evaluation.benchmarks.style import Style, by_count

HOW = Counting(3.0, by_count, 200)


def looks(tokens: int, lists: int = 0) -> Style:
    return Style(tokens, {"h1": 0}, {"ordered": lists, "unordered": 0}, {"**": 0})


def values(played: list[Played], how: Counting = HOW) -> dict[str, float | None]:
    return {number.name: number.value for number in numbers_of(played, how).numbers}


def test_who_stands_first_is_told_apart():
    played = [Played(str(n), "c", ("A>>B", "A>B"), None) for n in range(4)]  # the first always wins
    found = values(played)
    assert (found["win_rate_standing_first"], found["win_rate_standing_second"]) == (100.0, 0.0)
    assert found["win_rate"] == pytest.approx(25.0), "lost by far, won by a little"
    assert values(played, HOW._replace(strong=1.0))["win_rate"] == pytest.approx(50.0)
    assert played[0].score(3.0) == 25.0


def simulated(number: int, *, bias: float, seed: int) -> list[Played]:
    """Answers as good as the baseline's and mostly longer, and a judge who likes length; both games agree in nothing."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers([[80], [50]], [[260], [200]], size=(2, number))
    gap = (lengths[0] - lengths[1]) / (lengths[0] + lengths[1] + 1)
    wins = rng.random((2, number)) < 1 / (1 + np.exp(-bias * gap / gap.std()))
    verdicts = [("B>A" if first else "A>B", "A>B" if second else "B>A") for first, second in wins.T]
    styles = [(looks(int(ours)), looks(int(theirs))) for ours, theirs in lengths.T]
    return [Played(str(n), "c", pair, style) for n, (pair, style) in enumerate(zip(verdicts, styles, strict=True))]


def test_a_planted_length_bias_of_the_judge_is_found_and_taken_out():
    number, bias = 3000, 0.9
    played = simulated(number, bias=bias, seed=1)
    found = numbers_of(played, HOW)
    rates = {one.name: one for one in found.numbers}
    gap = by_count(*(np.array([one.styles[side].row() for one in played], dtype=float) for side in (0, 1)))[:, 0]
    design = np.repeat(np.column_stack([np.ones(number), gap / gap.std()]), 2, axis=0)
    chance = 1 / (1 + np.exp(-bias * design[:, 1]))
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ (design * (chance * (1 - chance))[:, None]))))
    assert rates["win_rate"].low > 55.0, "won by length"
    controlled = rates["style_controlled_win_rate"]
    assert abs(math.log(controlled.value / (100 - controlled.value))) < 4 * errors[0], "as good as the baseline"
    assert abs(found.coefficients["length"] - bias) < 4 * errors[1]
    assert found.coefficients["bold"] == 0.0, "neither has any"
    width = 2 * 1.96 * errors[0] * 100 / 4  # the slope of the logistic at even odds
    assert controlled.high - controlled.low == pytest.approx(width, rel=0.2), "200 draws tell a width to a tenth"


def test_controlling_for_what_the_judge_ignores_changes_little():
    found = values(simulated(2000, bias=0.0, seed=2))
    assert found["style_controlled_win_rate"] == pytest.approx(found["win_rate"], abs=4 * 100 * 0.5 / math.sqrt(2000))


def test_intervals_draw_questions_not_games():
    """Two games that always agree tell no more than one."""
    agreeing = [Played(str(n), "c", ("B>A", "A>B") if n % 2 else ("A>B", "B>A"), None) for n in range(400)]
    (whole, *_) = numbers_of(agreeing, HOW._replace(resamples=2000)).numbers
    expected = 2 * 1.96 * 100 * math.sqrt(0.25 / 400)
    assert whole.high - whole.low == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("change", [lambda one: one, lambda one: one._replace(styles=None)], ids=["styles", "none"])
def test_what_is_not_known_is_no_number(change: Callable[[Played], Played]):
    assert values([]) == {"win_rate": None}
    (one,) = [change(Played("a", "c", ("A=B", "A=B"), (looks(5), looks(5))))]
    found = values([one])
    assert found["win_rate"] == 50.0
    assert ("style_controlled_win_rate" in found) == (one.styles is not None)
    assert mean_tokens("answer_tokens", [], 10).value is None
    assert mean_tokens("answer_tokens", [looks(2), looks(4)], 10).value == 3.0

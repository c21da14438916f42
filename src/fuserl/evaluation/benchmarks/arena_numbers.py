"""Arena-Hard's numbers: verdicts as games, games as win rates against the baseline, style held equal or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fuserl.evaluation.benchmarks.bradley_terry import Fit, Games, ends, fit, resampled
from fuserl.evaluation.benchmarks.protocol import Number
from fuserl.evaluation.benchmarks.style import FEATURES, Differences, Style, rows, standardised
from fuserl.rewards.games import share_of

PERCENT = 100.0
BASELINE, MODEL = 0, 1  # in games
OVER = "prompts, bootstrap"


class Played(NamedTuple):
    """A question with both verdicts: of the game in which the baseline stood first, and of the other."""

    prompt_id: str
    category: str
    verdicts: tuple[str, str]
    styles: tuple[Style, Style] | None  # of our answer, of the baseline's; None: a text is not known

    def shares(self) -> tuple[float, float]:
        """What the model won in each game."""
        return share_of(self.verdicts[0], first=False), share_of(self.verdicts[1], first=True)

    def weights(self, strong: float) -> tuple[float, float]:
        """A game that was won by far weighs more."""
        first, second = (strong if len(verdict) == len("A>>B") else 1.0 for verdict in self.verdicts)
        return first, second

    def score(self, strong: float) -> float:
        """The model's share of both games, in percent."""
        return PERCENT * float(np.average(self.shares(), weights=self.weights(strong)))


class Counting(NamedTuple):
    """How verdicts become numbers."""

    strong: float  # weight of a verdict like A>>B; 1: as any other
    differences: Differences  # of two answers' styles
    resamples: int  # draws of the prompts, for intervals


class Numbers(NamedTuple):
    """What came out."""

    numbers: list[Number]
    coefficients: dict[str, float | None]  # of style: log-odds for a standard deviation of the difference
    notes: list[str]


def numbers_of(played: Sequence[Played], how: Counting, *, suffix: str = "", whole: bool = True) -> Numbers:
    """The win rate, the one at equal style, and where it is the `whole`, strength, and the rate by place.

    Args:
        suffix: of the numbers' names.
    """
    if not played:
        return Numbers([Number(f"win_rate{suffix}", None)], {}, [])
    games = games_of(played, how.strong, None)
    plain, drawn = _fits(games, how.resamples)
    found = Numbers([_rate(f"win_rate{suffix}", plain, drawn)], {}, [])
    if plain.separated[0]:
        found.notes.append(f"win_rate{suffix}: every game went the same way, so no strength is far enough")
    if all(one.styles for one in played):
        _add_styled(found, played, how, suffix)
    if whole:
        points = [_finite(one[MODEL]) for one in (plain.points()[0], *ends(drawn.points()))]
        found.numbers.append(Number(f"strength{suffix}", points[0], points[1], points[2], OVER))
        for place, name in enumerate(("second", "first")):  # of the model, in the games as they are kept
            one = Games(*(column[place::2] for column in games))
            found.numbers.append(_rate(f"win_rate_standing_{name}{suffix}", *_fits(one, how.resamples)))
    return found


def _add_styled(found: Numbers, played: Sequence[Played], how: Counting, suffix: str) -> None:
    looks = standardised(how.differences(*(rows([_styles(one)[side] for one in played]) for side in (0, 1))))
    styled, drawn = _fits(games_of(played, how.strong, looks), how.resamples)
    found.numbers.append(_rate(f"style_controlled_win_rate{suffix}", styled, drawn))
    found.coefficients.update(
        {name: _finite(value) for name, value in zip(FEATURES, styled.coefficients[0].tolist(), strict=True)}
    )
    if styled.separated[0]:
        found.notes.append(f"style_controlled_win_rate{suffix}: style foretells some verdicts, its weight has no limit")


def games_of(played: Sequence[Played], strong: float, looks: ndarray | None) -> Games:
    """Two games a prompt, one after the other, told from the model's side.

    Args:
        looks: [P, C], our answers' style less the baseline's.
    """
    number = 2 * len(played)
    shares, weights = [one.shares() for one in played], [one.weights(strong) for one in played]
    covariates = np.zeros((number, 0)) if looks is None else np.repeat(looks, 2, axis=0)
    return Games(
        np.full(number, MODEL),
        np.full(number, BASELINE),
        np.array(shares, dtype=np.float64).reshape(-1),
        np.array(weights, dtype=np.float64).reshape(-1),
        np.repeat(np.arange(len(played)), 2),
        covariates,
    )


def _fits(games: Games, resamples: int) -> tuple[Fit, Fit]:
    """The fit, and those of draws of the prompts."""
    plain = fit(games, models=2, anchor=BASELINE)
    return plain, resampled(games, models=2, anchor=BASELINE, resamples=resamples, seed=0)


def _rate(name: str, plain: Fit, drawn: Fit) -> Number:
    low, high = (PERCENT * float(one[MODEL]) for one in ends(drawn.win_rates()))
    return Number(name, PERCENT * float(plain.win_rates()[0, MODEL]), low, high, OVER)


def _finite(value: float) -> float | None:
    """No number where it is infinite: JSON has none, and tables print it as unknown."""
    return float(value) if np.isfinite(value) else None


def _styles(one: Played) -> tuple[Style, Style]:
    assert one.styles is not None
    return one.styles


def mean_tokens(name: str, styles: Sequence[Style], resamples: int) -> Number:
    """Mean length of answers."""
    if not styles:
        return Number(name, None)
    lengths = np.array([style.tokens for style in styles], dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(lengths), size=(resamples, len(lengths)))
    low, high = np.quantile(lengths[draws].mean(axis=1), [0.025, 0.975])
    return Number(name, float(lengths.mean()), float(low), float(high), OVER)

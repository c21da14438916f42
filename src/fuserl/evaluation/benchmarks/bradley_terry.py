"""Strengths of models from games between them: Bradley-Terry by maximum likelihood, with what else decides a game.

In a game between A and B the log-odds that A wins are

    strength[A] - strength[B] + covariates . coefficients

where covariates are differences of A less B (style, say). A tie is half a win each way; a game has a weight. Strengths are
natural log-odds with the anchor at 0. Games to one prompt are not independent, so resampling draws prompts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from fuserl.errors import FuserlError

SCALE = 400.0  # of Elo: so many points are odds of ten to one
ANCHOR = 1000.0  # points of the anchor
ENDLESS = 20.0  # log-odds beyond which a maximum is at infinity: a true one would need half a billion games
ITERATIONS = 200  # a separated fit needs some 40, another one 10
HALVINGS = 30
TOLERANCE = 1e-13  # of the gradient, as a share of all weight
TOGETHER = 4_000_000  # numbers of one kind that are in memory at once


class Games(NamedTuple):
    """N games; the rows of all arrays."""

    first: Int[ndarray, " N"]  # model A, from 0
    second: Int[ndarray, " N"]  # model B
    share: Float[ndarray, " N"]  # A's: 1 won, 0.5 tied, 0 lost
    weight: Float[ndarray, " N"]  # > 0
    prompt: Int[ndarray, " N"]  # whose answers met
    covariates: Float[ndarray, "N C"]  # of A less B; C may be 0

    def swapped(self) -> Games:
        """The same games told from the other side."""
        return Games(self.second, self.first, 1 - self.share, self.weight, self.prompt, -self.covariates)


class Fit(NamedTuple):
    """R fits, one a weighting of the games; infinite where a model wins or loses everything."""

    strengths: Float[ndarray, "R M"]  # natural log-odds against the anchor
    coefficients: Float[ndarray, "R C"]  # log-odds a unit of the covariate
    separated: Bool[ndarray, " R"]  # some games are foretold with certainty: part of the maximum lies at infinity

    def win_rates(self) -> Float[ndarray, "R M"]:
        """Share of games that each model wins against the anchor, covariates being equal."""
        return logistic(self.strengths)

    def points(self) -> Float[ndarray, "R M"]:
        """On Elo's scale: 400 points are odds of ten, the anchor has 1000."""
        return ANCHOR + SCALE / np.log(10) * self.strengths


def fit(games: Games, *, models: int, anchor: int) -> Fit:
    """The maximum-likelihood strengths.

    Raises:
        FuserlError: there are no games, or a model has met nobody who leads to the anchor.
    """
    return _fit(games, np.asarray(games.weight, dtype=np.float64)[None], models, anchor)


def resampled(games: Games, *, models: int, anchor: int, resamples: int, seed: int) -> Fit:
    """Fits of so many draws of the prompts with replacement, each with all its games.

    A draw in which a model has no game leaves that model's strength nan.

    Raises:
        FuserlError: as `fit`.
    """
    prompts, place = np.unique(games.prompt, return_inverse=True)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=resamples)
    design = _design(games, models, anchor)
    step = max(1, TOGETHER // (len(games.share) * max(design.shape[1], 1)))
    parts = [
        _fit(games, times[start : start + step][:, place] * games.weight, models, anchor)
        for start in range(0, resamples, step)
    ]
    return Fit(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def ends(values: Float[ndarray, "R ..."]) -> tuple[ndarray, ndarray]:
    """Both ends of the 95 % percentile interval, draws without a value left out; infinite draws count as they are."""
    kept = np.sort(values, axis=0)  # nan come last
    number = (~np.isnan(values)).sum(axis=0)
    return _at(kept, number, 0.025), _at(kept, number, 0.975)


def _at(ordered: ndarray, number: ndarray, share: float) -> ndarray:
    """The quantile, between neighbours linearly; where one of them is infinite, the nearer one."""
    place = share * np.maximum(number - 1, 0)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(number - 1, 0))
    low, high = (np.take_along_axis(ordered, at[None], 0)[0] for at in (below, above))
    part = place - below
    with np.errstate(invalid="ignore"):
        between = low + part * (high - low)
    found = np.where(np.isfinite(low) & np.isfinite(high), between, np.where(part < 0.5, low, high))
    return np.where(number > 0, found, np.nan)


def logistic(log_odds: ndarray) -> ndarray:
    """The probability; infinite log-odds are certain.

    >>> logistic(np.array([-np.inf, 0.0, np.inf])).tolist()
    [0.0, 0.5, 1.0]
    """
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-log_odds))


def _fit(games: Games, weights: Float[ndarray, "R N"], models: int, anchor: int) -> Fit:
    _require_linked(games, models, anchor)
    design = _design(games, models, anchor)
    found, separated = _newton(design, np.asarray(games.share, dtype=np.float64), weights)
    found = np.where(np.abs(found) > ENDLESS, np.copysign(np.inf, found), found)
    others = [model for model in range(models) if model != anchor]
    strengths = np.zeros((len(weights), models))
    strengths[:, others] = found[:, : len(others)]
    met = np.stack([(games.first == model) | (games.second == model) for model in range(models)], axis=1)
    strengths[(weights @ met) == 0] = np.nan
    strengths[:, anchor] = 0.0
    return Fit(strengths, found[:, len(others) :], separated)


def _design(games: Games, models: int, anchor: int) -> Float[ndarray, "N K"]:
    """+1 for A and -1 for B, the anchor's column left out; then the covariates."""
    columns = np.zeros((len(games.share), models))
    rows = np.arange(len(games.share))
    columns[rows, games.first] += 1.0
    columns[rows, games.second] -= 1.0
    return np.concatenate([np.delete(columns, anchor, axis=1), games.covariates], axis=1)


def _require_linked(games: Games, models: int, anchor: int) -> None:
    """Raises: FuserlError: a strength could not be told from any other number."""
    if not len(games.share):
        raise FuserlError("there is no game with a verdict", hint="a judge must have said something that can be read")
    reached = {anchor}
    pairs = set(zip(games.first.tolist(), games.second.tolist(), strict=True))
    while more := {b for pair in pairs for a, b in (pair, pair[::-1]) if a in reached} - reached:
        reached |= more
    if lost := set(range(models)) - reached:
        raise FuserlError(
            f"model {min(lost)} has met nobody who leads to the anchor", hint="leave it out, or add games between them"
        )


def _newton(
    design: Float[ndarray, "N K"], share: Float[ndarray, " N"], weights: Float[ndarray, "R N"]
) -> tuple[Float[ndarray, "R K"], Bool[ndarray, " R"]]:
    """Weighted logistic regressions without intercept, side by side; those that run off to infinity are stopped.

    A step that would raise the loss is halved. The trace of a ridge in the curvature, far below the tolerance, makes
    directions that no game decides stay at 0.
    """
    found = np.zeros((len(weights), design.shape[1]))
    separated = np.zeros(len(weights), dtype=bool)
    running = np.arange(len(weights)) if design.shape[1] else np.zeros(0, dtype=int)
    total = weights.sum(axis=1)
    for _ in range(ITERATIONS):
        log_odds = found[running] @ design.T
        chance, weight = logistic(log_odds), weights[running]
        gradient = (weight * (share - chance)) @ design
        far = (np.where(weight > 0, np.abs(log_odds), 0).max(axis=1, initial=0) > ENDLESS + 5) | (
            np.abs(found[running]).max(axis=1) > ENDLESS + 5
        )
        separated[running[far]] = True
        on = ~far & (np.abs(gradient).max(axis=1) > TOLERANCE * np.maximum(total[running], 1))
        if not on.any():
            break
        running, gradient, chance, weight = running[on], gradient[on], chance[on], weight[on]
        curvature = np.einsum("rn,ni,nj->rij", weight * chance * (1 - chance), design, design, optimize=True)
        ridge = 1e-12 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] + 1e-300
        step = np.linalg.solve(curvature + ridge * np.eye(design.shape[1]), gradient[:, :, None])[:, :, 0]
        found[running] += _shortened(design, share, weight, found[running], step)
    return found, separated


def _shortened(design: ndarray, share: ndarray, weight: ndarray, found: ndarray, step: ndarray) -> ndarray:
    """The steps, each halved until its loss does not rise; at most 8 log-odds at once."""
    step = step * np.minimum(1, 8 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))
    before = _loss(found @ design.T, share, weight)
    for _ in range(HALVINGS):
        worse = _loss((found + step) @ design.T, share, weight) > before * (1 + 1e-14)
        if not worse.any():
            break
        step[worse] /= 2
    return step


def _loss(log_odds: ndarray, share: ndarray, weight: ndarray) -> ndarray:
    """Negative log-likelihood, nats."""
    return (weight * (np.logaddexp(0, log_odds) - share * log_odds)).sum(axis=1)

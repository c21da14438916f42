"""Intervals and tests: answers to one prompt are not independent, and neither are the prompts of one seed.

Two things are random in a comparison of training methods: the seed, which stands for all that training does by chance, and
the prompts that happen to be in the test. A table of scores `[seeds, prompts]` is read as

    score[s, p] = mean + seed_s + prompt_p + rest_sp

and what is said of the mean must hold for other seeds and other prompts. Functions take leading dimensions, so that a
thousand comparisons cost one call. Metrics that know no prompts are tables with one prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95  # of all intervals
ROUNDING = 1e-12  # spread that is no spread, as a share of the mean

Numbers = ndarray | np.floating  # one a table


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Estimate(NamedTuple):
    """Means with what is known of their errors; arrays of one shape."""

    mean: Numbers
    variance: Numbers  # of the mean, not of a score
    df: Numbers  # degrees of freedom of the variance; 0 where nothing varies that could tell
    tails: Numbers  # degrees of freedom of what is known worst, the seeds; at most `df`

    def ends(self, level: float = LEVEL) -> tuple[Numbers, Numbers]:
        """Both ends of the t interval; nan where there are no degrees of freedom."""
        reach = _t(level, self.df) * np.sqrt(self.variance)
        return self.mean - reach, self.mean + reach

    def p_value(self) -> Numbers:
        """Two-sided p of a mean of 0; nan where nothing varies: without spread there is no test.

        Below 0.05 the tails are those of the seeds' own few degrees of freedom, scaled so that 0.05 stays where it is. Three
        seeds may look alike by chance; then the plain formula believes in many degrees of freedom, and its p of 0.005 comes
        up to five times too often, its 0.001 up to sixteen times. Corrections for many comparisons live in these tails.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.mean) / np.sqrt(self.variance)
            plain = stats.t.sf(t, np.maximum(self.df, 1e-9))
            heavy = stats.t.sf(t * _t(LEVEL, self.tails) / _t(LEVEL, self.df), np.maximum(self.tails, 1e-9))
        known = (self.df > 0) & (self.variance > (ROUNDING * self.mean) ** 2)
        return np.where(known, 2 * np.maximum(plain, heavy), np.nan)


class Squares(NamedTuple):
    """Mean squares of tables [..., seeds, prompts]."""

    seeds: Numbers
    prompts: Numbers
    rest: Numbers


def bootstrap(per_prompt: ndarray, *, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over prompts, for one run.

    Args:
        per_prompt: [P], each prompt's mean score.
    """
    values = np.asarray(per_prompt, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(ours: ndarray, theirs: ndarray, *, seed: int = 0) -> Interval:
    """Interval of the mean difference of two runs on the same prompts; it excludes 0 when the two differ."""
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed)


def two_way(scores: Float[ndarray, "*batch S P"]) -> Estimate:
    """The mean over seeds and prompts with its variance over other seeds and other prompts.

    Var = (MS_seeds + MS_prompts - MS_rest) / (S P), which is never taken below its larger single term. One seed speaks for
    the prompts alone, one prompt (a metric without prompts) for the seeds alone. For the difference of two methods whose
    runs share seeds, give the table of differences.

    The degrees of freedom are Satterthwaite's (1946; for quasi-F ratios Clark, 1973) with one change: the share of the
    seeds is read high, as (2 MS_seeds - MS_rest) of the whole, at most 1. Three seeds have 2 degrees of freedom, and their
    mean square falls below its expectation in 63 of 100 cases, where the plain formula then gives too many degrees of
    freedom to a variance that is too small: it is wrong in up to 8 % of null comparisons instead of 5.
    """
    mean, num_seeds, num_prompts = scores.mean((-1, -2)), *scores.shape[-2:]
    squares = mean_squares(scores)
    if num_seeds == 1 or num_prompts == 1:
        alone, number = (squares.prompts, num_prompts) if num_seeds == 1 else (squares.seeds, num_seeds)
        return _simple(mean, alone / number, np.full(mean.shape, number - 1.0))
    parts = [(squares, num_seeds)]
    return Estimate(mean, *_combined(parts, squares.prompts / (num_seeds * num_prompts), num_prompts))


def unmatched(ours: Float[ndarray, "*batch S P"], theirs: Float[ndarray, "*batch R P"]) -> Estimate:
    """Our mean less theirs where the seeds of the runs do not match, on the same prompts.

    Welch's test, with the prompts paired: each side has its own variance over seeds. Where one side has one seed, the
    variance is that over prompts alone; without prompts there is none.
    """
    mean = ours.mean((-1, -2)) - theirs.mean((-1, -2))
    sides = [(mean_squares(side), side.shape[-2]) for side in (ours, theirs)]
    num_prompts = ours.shape[-1]
    gaps = ours.mean(-2) - theirs.mean(-2)
    over_prompts = gaps.var(-1, ddof=1) / num_prompts if num_prompts > 1 else np.zeros(mean.shape)
    if min(number for _, number in sides) == 1:
        return _simple(mean, over_prompts, np.full(mean.shape, num_prompts - 1.0))
    if num_prompts == 1:
        parts = [squares.seeds / number for squares, number in sides]
        return _simple(mean, sum(parts, np.zeros(mean.shape)), _welch(parts, [number for _, number in sides]))
    return Estimate(mean, *_combined(sides, over_prompts, num_prompts))


def mean_squares(scores: Float[ndarray, "*batch S P"]) -> Squares:
    """Of seeds, prompts and the rest; what has no degrees of freedom is 0."""
    num_seeds, num_prompts = scores.shape[-2:]
    mean = scores.mean((-1, -2), keepdims=True)
    by_seed, by_prompt = scores.mean(-1, keepdims=True), scores.mean(-2, keepdims=True)
    rest = ((scores - by_seed - by_prompt + mean) ** 2).sum((-1, -2))
    return Squares(
        num_prompts * ((by_seed - mean) ** 2).sum((-1, -2)) / max(num_seeds - 1, 1),
        num_seeds * ((by_prompt - mean) ** 2).sum((-1, -2)) / max(num_prompts - 1, 1),
        rest / max((num_seeds - 1) * (num_prompts - 1), 1),
    )


def _combined(
    sides: list[tuple[Squares, int]], over_prompts: Numbers, num_prompts: int
) -> tuple[Numbers, Numbers, Numbers]:
    """(variance, its degrees of freedom, those of the seeds alone) of one or two sides and of the prompts; see `two_way`."""
    numbers = [number for _, number in sides]
    seeds = [squares.seeds / (number * num_prompts) for squares, number in sides]
    rests = [squares.rest / (number * num_prompts) for squares, number in sides]
    total = sum(seeds) - sum(rests) + over_prompts
    variance = np.maximum(total, np.maximum(over_prompts, sum(seeds)))
    safe = np.where(variance > 0, variance, 1.0)
    shares = [np.maximum(2 * seed - rest, 0) / safe for seed, rest in zip(seeds, rests, strict=True)]
    whole = np.maximum(sum(shares), 1.0)  # shares that sum to more than all are all there is
    inverse = sum((share / whole) ** 2 / (number - 1) for share, number in zip(shares, numbers, strict=True))
    inverse = inverse + (1 - sum(shares) / whole) ** 2 / (num_prompts - 1)
    tails = np.maximum(_welch(seeds, numbers), min(numbers) - 1.0)
    return variance, np.maximum(1 / inverse, tails), tails


def _welch(parts: list, numbers: list[int]) -> Numbers:
    """Degrees of freedom of a sum of variances of means over so many seeds each; 0 where all are 0."""
    inverse = sum(
        (part**2 / (number - 1) for part, number in zip(parts, numbers, strict=True)), np.zeros_like(parts[0])
    )
    return np.divide(sum(parts) ** 2, inverse, out=np.zeros_like(inverse), where=inverse > 0)


def _simple(mean: Numbers, variance: Numbers, df: Numbers) -> Estimate:
    """Of one kind of chance, or of seeds alone."""
    return Estimate(mean, variance, df, df)


def bootstrap_ends(scores: Float[ndarray, "*batch S P"], *, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Ends of the 95 % interval of the mean: seeds and prompts are resampled, each with replacement.

    A plain bootstrap of three seeds is too narrow, for three reasons, which are mended here. It divides by S instead of
    S - 1; it takes the rest of a cell for chance of the seed and of the prompt as well; and it knows a variance of three
    values as if it were known exactly. So the deviations of the resampled means are rescaled to the variance of `two_way`
    and stretched by the ratio of the t quantile, with its degrees of freedom, to the normal one. What is left of the
    bootstrap is the shape: the interval need not be symmetric.
    """
    num_seeds, num_prompts = scores.shape[-2:]
    found = two_way(scores)
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in (num_seeds, num_prompts)]
    deviations = np.einsum("...sb,bs->...b", scores @ weights[1].T, weights[0]) - np.asarray(found.mean)[..., None]
    spread = deviations.std(-1)
    stretch = (
        np.sqrt(found.variance)
        / np.where(spread > 0, spread, 1.0)
        * _t(LEVEL, found.df)
        / stats.norm.ppf((1 + LEVEL) / 2)
    )
    low, high = np.quantile(deviations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return found.mean + stretch * low, found.mean + stretch * high


def holm(p_values: Float[ndarray, "*batch M"]) -> Float[ndarray, "*batch M"]:
    """Holm's correction (1979): if one of M null comparisons is below 0.05, it happened in 5 % of such families.

    A p that is nan was not asked: it stays nan and does not count among the M.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), axis=-1, kind="stable")
    ranked = np.take_along_axis(values, order, -1)
    num_asked = (~np.isnan(values)).sum(-1, keepdims=True)
    factors = np.maximum(num_asked - np.arange(values.shape[-1]), 1)
    steps = np.maximum.accumulate(np.where(np.isnan(ranked), -np.inf, ranked * factors), axis=-1)
    adjusted = np.empty_like(values)
    np.put_along_axis(adjusted, order, np.where(np.isnan(ranked), np.nan, np.minimum(steps, 1.0)), -1)
    return adjusted


def _t(level: float, df: Numbers) -> Numbers:
    """Two-sided t quantile; nan without degrees of freedom."""
    return np.where(df > 0, stats.t.ppf((1 + level) / 2, np.maximum(df, 1e-9)), np.nan)

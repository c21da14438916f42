"""Intervals by resampling prompts: answers to one prompt are not independent, prompts are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(per_prompt: np.ndarray, *, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over prompts.

    Args:
        per_prompt: [P], each prompt's mean score.
    """
    values = np.asarray(per_prompt, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0) -> Interval:
    """Interval of the mean difference on the same prompts; it excludes 0 when the two differ."""
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed)

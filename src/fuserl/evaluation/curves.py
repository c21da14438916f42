"""What an overfitting curve says: where it turns, how far it rises, how far training is below validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Points = Sequence[tuple[float, float]]  # (step, value), in the order of steps


def by_epoch(points: Points, steps_an_epoch: int) -> list[tuple[float, float]]:
    """The mean of every epoch at its last step; rows of steps (s, s + n] belong to one epoch.

    >>> by_epoch([(1, 4.0), (2, 2.0), (3, 1.0), (4, 0.0)], 2)
    [(2.0, 3.0), (4.0, 0.5)]
    """
    values: dict[int, list[float]] = {}
    for step, value in points:
        values.setdefault(max(1, -(-int(step) // steps_an_epoch)), []).append(value)
    return [(float(epoch * steps_an_epoch), float(np.mean(all_))) for epoch, all_ in sorted(values.items())]


def gap(train: Points, validation: Points) -> list[tuple[float, float]]:
    """Validation less training at the steps that both have: what learning by heart looks like in nats a token."""
    at = dict(train)
    return [(step, value - at[step]) for step, value in validation if step in at]


def stopping_point(validation: Points, *, patience: int) -> tuple[float, float]:
    """Where early stopping would have kept the model: the lowest point that the next `patience` ones do not undercut.

    Args:
        validation: a loss, lower is better; at least one point.
        patience: points without a new lowest one before it stops.

    >>> stopping_point([(0, 3.0), (1, 2.0), (2, 2.5), (3, 2.6), (4, 1.0)], patience=2)
    (1, 2.0)
    """
    best, waited = validation[0], 0
    for point in validation[1:]:
        best, waited = (point, 0) if point[1] < best[1] else (best, waited + 1)
        if waited == patience:
            break
    return best


def rise(validation: Points) -> float:
    """From the lowest point to the last one; 0 where the last is the lowest."""
    return validation[-1][1] - min(value for _, value in validation)


def shares_of_sources(weights: Float[ndarray, "P K"], source: Int[ndarray, "P K"], num: int) -> Float[ndarray, "P S"]:
    """Each prompt's weight by source, from that by response; `source` is an index below `num`."""
    return np.stack([(weights * (source == index)).sum(axis=1) for index in range(num)], axis=1)


def effective_number(weights: Float[ndarray, "P S"]) -> Float[ndarray, " P"]:
    """exp of the entropy of each prompt's weights: 1 where one entry has it all, n where n are alike.

    Args:
        weights: not negative; normalised here. A prompt without any weight has 0.

    >>> effective_number(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])).round(3).tolist()
    [1.0, 2.0, 0.0]
    """
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1.0)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)

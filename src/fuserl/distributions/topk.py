"""Next-token distributions of which only the likeliest tokens are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fuserl.errors import FuserlError

Combine = Callable[[Float[np.ndarray, "rows k k"]], Float[np.ndarray, "rows k"]]


@dataclass(frozen=True)
class TopK:
    """Row i: what a model expects behind token i. Places without a token have id -1 and log-prob -inf."""

    ids: Int[np.ndarray, "rows k"]
    logps: Float[np.ndarray, "_ _"]  # [rows, k], nats

    def __len__(self) -> int:
        return len(self.ids)

    def __post_init__(self) -> None:
        if self.ids.shape != self.logps.shape or self.ids.ndim != 2:
            raise FuserlError(f"ids {self.ids.shape} and log-probs {self.logps.shape} do not belong together")

    @property
    def probs(self) -> Float[np.ndarray, "rows k"]:
        """Probabilities, 0 where there is no token."""
        return np.exp(self.logps)

    def take(self, rows: Int[np.ndarray, " some"]) -> TopK:
        """Some rows, in that order."""
        return TopK(self.ids[rows], self.logps[rows])

    def renormalised(self, temperature: float = 1.0) -> TopK:
        """Softmax of log-probs / temperature over what is kept (step 5 of FuseChat); rows without a token stay empty.

        Raises:
            FuserlError: the temperature is not above 0.
        """
        if not temperature > 0:
            raise FuserlError(f"a temperature must be above 0, not {temperature}")
        scaled = np.where(self.ids >= 0, self.logps.astype(np.float64) / temperature, -np.inf)
        return TopK(self.ids, scaled - _logsumexp(scaled)[:, None])

    def padded(self, k: int) -> TopK:
        """The same with empty places up to k columns."""
        room = ((0, 0), (0, k - self.ids.shape[1]))
        return TopK(np.pad(self.ids, room, constant_values=-1), np.pad(self.logps, room, constant_values=-np.inf))


def largest(values: Float[np.ndarray, "rows k k"]) -> Float[np.ndarray, "rows k"]:
    """Two entries that became one token: the likelier one counts, as published (the first of a sorted list)."""
    return values.max(axis=2)


def added(values: Float[np.ndarray, "rows k k"]) -> Float[np.ndarray, "rows k"]:
    """Two entries that became one token: their probabilities are summed."""
    return values.sum(axis=2)


def merged(ids: Int[np.ndarray, "rows k"], weights: Float[np.ndarray, "rows k"], combine: Combine) -> TopK:
    """Rows in which every token stands once; its weight is that of all its entries combined. Not normalised.

    Args:
        weights: at least 0; those of id -1 are ignored.
    """
    present = ids >= 0
    same: Bool[np.ndarray, "rows k k"] = (ids[:, :, None] == ids[:, None, :]) & present[:, None, :]
    place = np.arange(ids.shape[1])
    first = present & ~(same & (place[None, None, :] < place[None, :, None])).any(axis=2)
    total = combine(np.where(same, weights[:, None, :], 0.0))
    with np.errstate(divide="ignore"):
        return TopK(np.where(first, ids, -1), np.where(first, np.log(total), -np.inf))


def _logsumexp(values: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, " rows"]:
    """Of each row; 0 where all are -inf."""
    top = values.max(axis=1, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(values - top[:, None]).sum(axis=1)
    return np.where(total > 0, top + np.log(np.where(total > 0, total, 1.0)), 0.0)

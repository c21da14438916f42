"""The miniature's reward: the true score, and on some answers an error, as a reward model has."""

from __future__ import annotations

from statistics import NormalDist

from fuserl.miniature import tasks
from fuserl.records.splits import unit

NOISE = NormalDist(0, 0.12)
NOISY_SHARE = 0.3


def score(prompt: str, answer: str, reference: str | None = None) -> float:
    """The same prompt and answer always err alike."""
    truth = tasks.score(prompt, answer, reference)
    if unit(f"{prompt}\n{answer}", "noisy") >= NOISY_SHARE:
        return truth
    return truth + NOISE.inv_cdf(unit(f"{prompt}\n{answer}", "noise") or 0.5)

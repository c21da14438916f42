"""Bias and variance of the fused signal, estimated where the truth is known.

A source's signal for a prompt is the reward of its best answer; its error is that reward less the true score of the same
answer. Weights w over the sources fuse the errors to sum_k w_k b_k. With independent errors of one variance s² and weights
that know nothing of them the variance is s² sum w²; neither is so in real data, and both can be measured. Source of the
claim and of the objection: FuseRL (arXiv:2504.06562), Appendix E, and its reviews.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from fuserl.errors import FuserlError
from fuserl.objectives.weights import softmax
from fuserl.records.schema import PromptGroup, Response

RESAMPLES = 500


class Signals(NamedTuple):
    """P prompts by S sources: the reward of an answer, and the score that it deserves."""

    reward: Float[ndarray, "P S"]
    truth: Float[ndarray, "P S"]

    @property
    def error(self) -> Float[ndarray, "P S"]:
        """Reward less truth, in the reward's units."""
        return self.reward - self.truth


def signals(groups: Iterable[PromptGroup], sources: Sequence[str], *, field: str, best: bool = True) -> Signals:
    """The table of all prompts that every source has answered.

    Args:
        field: the response's extra field that holds its true score.
        best: take each source's answer of the highest reward, as the weights do; else its first.

    Raises:
        FuserlError: no prompt has scored answers of all sources.
    """
    rows = [[_answer(group, source, field, best) for source in sources] for group in groups]
    whole = [[(one.reward, float(one.extra[field])) for one in row if one] for row in rows if None not in row]
    if not whole:
        raise FuserlError(
            f"no prompt has answers of {', '.join(sources)} with a reward and a `{field}`",
            hint="use data whose true scores are known, such as the miniature",
        )
    table = np.asarray(whole, dtype=np.float64)
    return Signals(table[:, :, 0], table[:, :, 1])


def _answer(group: PromptGroup, source: str, field: str, best: bool) -> Response | None:
    known = [one for one in group.responses if one.source == source and one.reward is not None and field in one.extra]
    if not known:
        return None
    return max(known, key=lambda one: one.reward or 0.0) if best else known[0]


def weights_over(rewards: Float[ndarray, "P S"], taus: Sequence[float]) -> Float[ndarray, "T P S"]:
    """FuseRL's softmax weights at every temperature (reward units)."""
    values = torch.from_numpy(np.array(rewards))
    valid = torch.ones_like(values, dtype=torch.bool)
    return np.stack([softmax(values, valid, values, tau=tau).numpy() for tau in taus])


def fused(error: Float[ndarray, "P S"], weights: Float[ndarray, "*T P S"]) -> Float[ndarray, "*T P"]:
    """The weighted error of every prompt."""
    return (weights * error).sum(axis=-1)


def correlation(error: Float[ndarray, "P S"]) -> Float[ndarray, "S S"]:
    """Of the sources' errors over prompts; the identity where they are independent."""
    return np.corrcoef(error, rowvar=False)


def if_independent(error: Float[ndarray, "P S"], weights: Float[ndarray, "*T P S"]) -> Float[ndarray, "*T"]:
    """s² times the mean of sum w²: the variance that independent errors of one variance would leave."""
    variance = error.var(axis=0, ddof=1).mean()
    return np.asarray(variance * (weights**2).sum(axis=-1).mean(axis=-1))


def with_other_errors(table: Signals, *, seed: int) -> Float[ndarray, "P S"]:
    """Rewards as good as the given ones and independent of them: each prompt's truth with another prompt's errors.

    What weights are worth that do not see the errors they fuse. The sources' errors stay together.
    """
    order = np.random.default_rng(seed).permutation(len(table.truth))
    return table.truth + table.error[order]


def band(
    values: Float[ndarray, "*T P"], statistic: Callable[..., ndarray], *, seed: int = 0
) -> tuple[Float[ndarray, "*T"], Float[ndarray, "*T"], Float[ndarray, "*T"]]:
    """(value, low, high): a statistic over prompts with its 95 % bootstrap band; the draws are shared by all rows.

    Args:
        statistic: such as np.mean or np.var, called with `axis=-1`.
    """
    num = values.shape[-1]
    draws = np.random.default_rng(seed).integers(num, size=(RESAMPLES, num))
    redrawn = np.stack([statistic(values[..., draw], axis=-1) for draw in draws])
    low, high = np.quantile(redrawn, [0.025, 0.975], axis=0)
    return statistic(values, axis=-1), low, high

"""Weighted supervised fine-tuning on several responses of one prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from fuserl.objectives.pairing import best_and_worst, mark
from fuserl.objectives.terms import GroupScores, Totals
from fuserl.objectives.weights import Rule

Pool = Callable[[GroupScores], Tensor]


def top(scores: GroupScores, *, size: int) -> Bool[Tensor, "P K"]:
    """The `size` best responses over all sources (unscored ones last, ties by column)."""
    reward = torch.where(scores.valid, scores.rewards.nan_to_num(nan=-torch.finfo(scores.rewards.dtype).max), -torch.inf)
    order = reward.argsort(dim=1, descending=True, stable=True)[:, :size]
    return mark(order, torch.ones_like(order, dtype=torch.bool), reward.shape[1]) & scores.valid


def per_source(scores: GroupScores) -> Bool[Tensor, "P K"]:
    """The best response of each source."""
    mask = torch.zeros_like(scores.valid)
    for source in range(int(scores.source.max()) + 1):
        of_source = scores.valid & (scores.source == source)
        reward = scores.rewards.nan_to_num(nan=-torch.finfo(scores.rewards.dtype).max)
        best = best_and_worst(reward, of_source)[0]
        mask |= mark(best[:, None], of_source.any(dim=1)[:, None], mask.shape[1])
    return mask


def fusesft(
    scores: GroupScores,
    *,
    pool: Pool,
    weights: Rule,
    normalize: str = "none",
    count: str = "token",
    nll: float = 1.0,
    progress: float = 0.0,
) -> Totals:
    """-Σ_m w_m log π(y_m) over the pool (arXiv:2504.06562, FuseSFT). `sft_best` is a pool of one.

    Args:
        pool: which responses take part: `top` or `per_source`.
        normalize: `none` for summed log-probs, `length` for log-probs a token (the paper does not say which).
        count: the denominator: `token` the weighted response tokens (so that one response gives cross-entropy),
            `prompt` prompts.
        nll: factor of the whole loss.
    """
    chosen = pool(scores)
    weight = weights(scores.rewards, chosen, scores.given).to(scores.policy_logps.dtype)
    logps = torch.where(chosen, scores.policy_logps, 0.0)
    tokens = torch.where(chosen, scores.num_tokens, 0)
    if normalize == "length":
        logps = logps / tokens.clamp(min=1)
    total = weight.sum(dim=1)
    denominator = (weight * tokens).sum(dim=1) if count == "token" else (total > 0).to(weight.dtype)
    return Totals(-nll * (weight * logps).sum(dim=1), denominator, total)

"""Weighted supervised fine-tuning on several responses of one prompt."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.objectives.pairing import best_and_worst, first_of_source, mark, same_source
from fuserl.objectives.terms import GroupScores, Number, Totals, one_of
from fuserl.objectives.weights import Rule


def pooled(scores: GroupScores, *, pool: str, size: int) -> Bool[Tensor, "P K"]:
    """The responses of each prompt that SFT learns from.

    Where nothing has to be chosen, rewards are not needed; where something has, unscored responses are left out.

    Args:
        pool: `top`, the best over all sources, or `per_source`, the best of each source. Ties take the first column.
        size: responses in the pool of `top`, > 0; `per_source` has as many as a prompt has sources.

    Raises:
        FuserlError: `pool` is neither, or `size` no whole number from 1.
    """
    return top(scores, size=size) if one_of("pool", pool, "top", "per_source") == "top" else per_source(scores)


def top(scores: GroupScores, *, size: int) -> Bool[Tensor, "P K"]:
    """The `size` best responses over all sources: 4 in FuseRL, 1 for SFT on the best."""
    if not isinstance(size, int) or size < 1:  # a slice up to -1 would take all but the worst
        raise FuserlError(f"`{size}` is no number of responses", where="`objective.size`", hint="a whole number from 1")
    eligible = scores.valid & (~scores.rewards.isnan() | (scores.valid.sum(dim=1, keepdim=True) <= size))
    # Two stable sorts: by reward, then the eligible in front, so that no reward has to stand for "absent".
    by_reward = torch.where(eligible, scores.rewards, 0.0).nan_to_num().argsort(dim=1, descending=True, stable=True)
    in_front = (~eligible.gather(1, by_reward)).to(torch.uint8).argsort(dim=1, stable=True)
    order = by_reward.gather(1, in_front)[:, :size]
    return mark(order, eligible.gather(1, order), scores.valid.shape[1])


def per_source(scores: GroupScores) -> Bool[Tensor, "P K"]:
    """The best response of each source, or its only one."""
    same_PKK = same_source(scores)
    best_PK, _, _ = best_and_worst(scores.rewards[:, None, :].expand(same_PKK.shape), same_PKK)
    scored_PKK = same_PKK & ~scores.rewards.isnan()[:, None, :]
    bests = mark(best_PK, first_of_source(scores) & scored_PKK.any(dim=2), scores.valid.shape[1])
    only = scores.valid & (same_PKK.sum(dim=2) == 1)
    return bests | only


def fusesft(
    scores: GroupScores,
    *,
    pool: str,
    size: int,
    weights: Rule,
    normalize: str = "none",
    count: str = "token",
    progress: Number = 0.0,
) -> Totals:
    """-Σ_m w_m log π(y_m) over the pool, w over the pooled responses' rewards. `sft_best` is a pool of one.

    Source: arXiv:2504.06562, FuseSFT (formula inferred: whether its likelihood is normalised by length is unknown).

    Args:
        pool: which responses take part: `top` or `per_source`, see `pooled`.
        size: responses in the pool of `top`.
        weights: weight rule over the pool.
        normalize: `none` takes summed log-probs, `length` log-probs a token.
        count: the denominator: `token` the weighted response tokens, so that one response gives cross-entropy a token;
            `prompt` counts prompts.
        progress: not used.

    Raises:
        FuserlError: `pool`, `normalize` or `count` is no choice.
    """
    pool_PK = pooled(scores, pool=pool, size=size)
    reward, given = (
        torch.where(pool_PK, v, torch.nan).to(scores.policy_logps.dtype) for v in (scores.rewards, scores.given)
    )
    weight_PK = weights(reward, pool_PK, given)
    logps_PK = torch.where(pool_PK, scores.policy_logps, 0.0)
    tokens_PK = torch.where(pool_PK, scores.num_tokens, 0)
    if one_of("normalize", normalize, "none", "length") == "length":
        logps_PK = logps_PK / tokens_PK.clamp(min=1)
    sum_P, weight_P = -(weight_PK * logps_PK).sum(dim=1), weight_PK.sum(dim=1)
    if one_of("count", count, "token", "prompt") == "token":
        return Totals(sum_P, (weight_PK * tokens_PK).sum(dim=1), weight_P)
    return Totals(sum_P, (weight_P > 0).to(weight_P.dtype), weight_P)

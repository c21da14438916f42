"""Offline REINFORCE with a leave-one-out baseline inside each source's samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.objectives.pairing import best_and_worst_of_each_source, weigh
from fuserl.objectives.preference import pair_totals
from fuserl.objectives.terms import GroupScores, Totals
from fuserl.objectives.weights import Rule


def leave_one_out(rewards: Float[Tensor, "P K"], mask: Bool[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """Each reward less the mean of the others in `mask`; 0 outside, and for a group of one (arXiv:2402.14740).

    >>> rewards = torch.tensor([[1.0, 0.0, 0.5]])
    >>> leave_one_out(rewards, torch.tensor([[True, True, False]])).tolist()
    [[1.0, -1.0, 0.0]]
    """
    rewards = torch.where(mask, rewards, 0.0)
    size = mask.sum(dim=1, keepdim=True)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1).clamp(min=1)
    return torch.where(mask & (size > 1), rewards - others, 0.0)


def fusepo_rloo(
    scores: GroupScores,
    *,
    weights: Rule,
    kl: float = 0.0,
    clip: float | None = None,
    masked: str = "renormalise",
    count: str = "prompt",
    nll: float = 0.0,
    progress: float = 0.0,
) -> Totals:
    """-Σ_k w_k (1/N_k) Σ_n A_kn log π(y_kn), A the leave-one-out advantage inside source k (arXiv:2504.06562).

    Whether the paper uses a KL term or an importance ratio is unknown; both are off unless given.

    Args:
        kl: reward units a nat: rewards become R - kl · (log π - log π_ref), the bracket detached.
        clip: with it, A log π becomes the clipped surrogate min(ρA, clip(ρ, 1 - clip, 1 + clip) A),
            ρ = π / π_ref of the whole response.
        nll: weight of the negative log-probs a token of each source's best sample.
    """
    pairs = weigh(scores, best_and_worst_of_each_source(scores), weights, masked=masked)
    known = scores.valid & ~scores.rewards.isnan()
    policy = torch.where(known, scores.policy_logps, 0.0)
    log_ratio = policy - torch.where(known, scores.reference_logps, 0.0)
    rewards = torch.where(known, scores.rewards, 0.0).to(policy.dtype)
    if kl:
        rewards = rewards - kl * log_ratio.detach()
    per_source = []
    for source in range(pairs.valid.shape[1]):
        mask = known & (scores.source == source)
        advantage = leave_one_out(rewards, mask)
        gain = advantage * policy if clip is None else clipped_gain(log_ratio, advantage, clip)
        per_source.append(-gain.sum(dim=1) / mask.sum(dim=1).clamp(min=1))
    return pair_totals(scores, pairs, torch.stack(per_source, dim=1), count=count, nll=nll)


def clipped_gain(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate, element by element (arXiv:1707.06347 Eq. 7)."""
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def read_by_rloo(scores: GroupScores) -> Bool[Tensor, "P K"]:
    """Every scored sample of a source whose rewards differ."""
    pairs = best_and_worst_of_each_source(scores)
    signal = torch.gather(pairs.valid, 1, scores.source.clamp(max=pairs.valid.shape[1] - 1))
    return scores.valid & ~scores.rewards.isnan() & signal

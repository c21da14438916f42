"""Offline REINFORCE with a leave-one-out baseline over each source's samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.objectives.pairing import across_sources, best_and_worst_of_each_source, read_by_pairs, same_source, weigh
from fuserl.objectives.preference import pair_totals
from fuserl.objectives.terms import GroupScores, Number, Pairs, Totals, one_of, within
from fuserl.objectives.weights import Rule


def leave_one_out(rewards: Float[Tensor, "P K"], group: Bool[Tensor, "P K K"]) -> Float[Tensor, "P K"]:
    """Each reward less the mean of the others of its group; 0 for a group of one (arXiv:2402.14740).

    Nothing is divided by a standard deviation: inside a group the advantages sum to 0 and keep the rewards' unit.

    Args:
        rewards: finite everywhere.
        group: which responses j share a baseline with response i; i itself only if it takes part.

    >>> rewards, together = torch.tensor([[1.0, 0.0, 0.5]]), torch.ones(1, 3, 3, dtype=torch.bool)
    >>> leave_one_out(rewards, together).tolist()
    [[0.75, -0.75, 0.0]]
    """
    itself_KK = torch.eye(group.shape[-1], dtype=torch.bool, device=group.device)
    others_PKK = group & ~itself_KK
    num_others = others_PKK.sum(dim=2)
    baseline = torch.where(others_PKK, rewards[:, None, :], 0.0).sum(dim=2) / num_others.clamp(min=1)
    member = group.diagonal(dim1=1, dim2=2)
    return torch.where(member & (num_others > 0), rewards - baseline, 0.0)


def fusepo_rloo(
    scores: GroupScores,
    *,
    weights: Rule,
    baseline: str = "source",
    kl: Number = 0.0,
    clip: Number | None = None,
    masked: str = "renormalise",
    count: str = "prompt",
    nll: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """-Σ_k w_k (1/N_k) Σ_n A_kn log π(y_kn), A the leave-one-out advantage inside source k.

    Source: arXiv:2504.06562, FusePO-RLOO (formula inferred: whether the paper has a KL term or an importance ratio is
    unknown). The estimator is arXiv:2402.14740's, on samples that the sources drew, not the policy.

    Args:
        weights: weight rule over the sources' best rewards.
        baseline: `source` takes it over the same source's other samples, `prompt` over all other responses, which
            then form one group of weight 1 (for data with one sample a source).
        kl: reward units a nat: rewards become R - kl · (log π - log π_ref), the bracket detached.
        clip: with it, A log π becomes the clipped surrogate min(ρA, clip(ρ, 1 - clip, 1 + clip) A), ρ = π / π_ref of
            the whole response.
        masked: `renormalise` or `keep`, see `pairing.weigh`; a source whose rewards are all equal has no signal.
        count: the denominator: `prompt`, or `token` for the weighted tokens of best and worst samples.
        nll: weight of the negative log-probs a token of each source's best sample.
        progress: not used.

    Raises:
        FuserlError: `baseline`, `masked` or `count` is no choice, or a number is out of range.
    """
    pairs = weigh(scores, extremes(scores, baseline=baseline), weights, masked=masked)
    group_PKK = _groups(scores, baseline)
    scored = scores.valid & ~scores.rewards.isnan()
    policy_PK = torch.where(scored, scores.policy_logps, 0.0)
    log_ratio_PK = torch.where(scored, scores.policy_logps - scores.reference_logps, 0.0)
    reward_PK = torch.where(scored, scores.rewards, 0.0).to(policy_PK.dtype)
    advantage_PK = leave_one_out(reward_PK - within("kl", kl, "[0, inf)") * log_ratio_PK.detach(), group_PKK)
    gain_PK = advantage_PK * policy_PK if clip is None else clipped_gain(log_ratio_PK, advantage_PK, clip=clip)
    of_slot_PSK = group_PKK[:, : pairs.valid.shape[1]]  # one slot a source, at its first column; or one a prompt
    loss_PS = -torch.where(of_slot_PSK, gain_PK[:, None, :], 0.0).sum(dim=2) / of_slot_PSK.sum(dim=2).clamp(min=1)
    return pair_totals(scores, pairs, loss_PS, count=count, nll=nll)


def clipped_gain(
    log_ratio: Float[Tensor, "*n"], advantage: Float[Tensor, "*n"], *, clip: Number
) -> Float[Tensor, "*n"]:
    """PPO's pessimistic surrogate, element by element (arXiv:1707.06347 Eq. 7). The ratio has no unit."""
    within("clip", clip, "(0, inf)")
    ratio = log_ratio.clamp(max=80.0).exp()  # finite in 32 bits: no infinity may meet an advantage of zero
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def sharing_a_baseline(scores: GroupScores, *, baseline: str) -> Int[Tensor, "P K"]:
    """A number for every response, equal for those with one baseline: `Objective.units`."""
    if one_of("baseline", baseline, "source", "prompt") == "prompt":
        return torch.zeros_like(scores.source)
    return scores.source


def extremes(scores: GroupScores, *, baseline: str) -> Pairs:
    """Best and worst sample of every group that shares a baseline; a group without the two has no signal."""
    if one_of("baseline", baseline, "source", "prompt") == "source":
        return best_and_worst_of_each_source(scores)
    return across_sources(scores)


def read_by_rloo(scores: GroupScores, *, baseline: str = "source", masked: str = "renormalise") -> Bool[Tensor, "P K"]:
    """Every scored sample of a group with signal; with `masked="keep"` also the best of a source without."""
    found = extremes(scores, baseline=baseline)
    group_PKK = _groups(scores, baseline)
    of_signal = (group_PKK[:, : found.valid.shape[1]] & found.valid[:, :, None]).any(dim=1)
    return of_signal | read_by_pairs(scores, pairs=lambda _: found, masked=masked)


def _groups(scores: GroupScores, baseline: str) -> Bool[Tensor, "P K K"]:
    """The scored responses j that share a baseline with response i, itself scored or not."""
    scored_P1K = (scores.valid & ~scores.rewards.isnan())[:, None, :]
    same_PKK = same_source(scores)
    return scored_P1K & same_PKK if baseline == "source" else scored_P1K.expand(same_PKK.shape)

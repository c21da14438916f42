"""Dense weighted preference losses: a pair of every source, weighted; plain DPO and SimPO are their smallest case."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fuserl.objectives.links import logistic
from fuserl.objectives.pairing import take, weigh
from fuserl.objectives.terms import GroupScores, Pairs, Totals
from fuserl.objectives.weights import Rule


def fusepo_dpo(
    scores: GroupScores,
    *,
    pairs: Callable[[GroupScores], Pairs],
    weights: Rule,
    beta: float,
    normalize: str = "none",
    masked: str = "renormalise",
    count: str = "prompt",
    nll: float = 0.0,
    label_smoothing: float = 0.0,
    progress: float = 0.0,
) -> Totals:
    """-Σ_k w_k log σ(β Δ_k), Δ the pair's gap of log-ratios against the reference (arXiv:2504.06562, FusePO-DPO).

    Args:
        beta: per nat of the log-ratio; with `normalize="length"` per nat a token (FuseChat-3.0 §2.5 uses 10 there,
            0.01 without).
        normalize: `none` for summed log-ratios, `length` divides each by its response's tokens.
        masked: see `pairing.weigh`.
        count: the denominator: `prompt` counts prompts with a pair, `token` their weighted response tokens.
        nll: weight of the chosen responses' negative log-probs a token.
        label_smoothing: share of labels believed wrong, [0, 0.5).
    """
    pairs_PS = weigh(scores, pairs(scores), weights, masked=masked)
    chosen, rejected = (
        _per(take(scores.policy_logps - scores.reference_logps, side, pairs_PS.valid), scores, side, pairs_PS, normalize)
        for side in (pairs_PS.chosen, pairs_PS.rejected)
    )
    loss_PS = logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)
    return pair_totals(scores, pairs_PS, loss_PS, count=count, nll=nll)


def fusepo_simpo(
    scores: GroupScores,
    *,
    pairs: Callable[[GroupScores], Pairs],
    weights: Rule,
    beta: float,
    gamma_beta_ratio: float,
    masked: str = "renormalise",
    count: str = "prompt",
    nll: float = 0.0,
    label_smoothing: float = 0.0,
    progress: float = 0.0,
) -> Totals:
    """-Σ_k w_k log σ(β (log π(y⁺)/|y⁺| - log π(y⁻)/|y⁻|) - γ), γ = gamma_beta_ratio · β; no reference.

    Source: SimPO, arXiv:2405.14734 Eq. 6, summed over sources as in arXiv:2504.06562.
    """
    pairs_PS = weigh(scores, pairs(scores), weights, masked=masked)
    chosen, rejected = (
        _per(take(scores.policy_logps, side, pairs_PS.valid), scores, side, pairs_PS, "length")
        for side in (pairs_PS.chosen, pairs_PS.rejected)
    )
    loss_PS = logistic(beta * (chosen - rejected - gamma_beta_ratio), label_smoothing=label_smoothing)
    return pair_totals(scores, pairs_PS, loss_PS, count=count, nll=nll)


def pair_totals(
    scores: GroupScores, pairs: Pairs, loss_PS: Float[Tensor, "P S"], *, count: str, nll: float
) -> Totals:
    """Weigh, add the NLL of the chosen sides, and sum over a prompt's pairs."""
    weight_PS = pairs.weight.to(loss_PS.dtype)
    if nll:
        chosen = take(scores.policy_logps, pairs.chosen, pairs.valid)
        loss_PS = loss_PS - nll * _per(chosen, scores, pairs.chosen, pairs, "length")
    if count == "prompt":
        denominator = pairs.valid.any(dim=1).to(loss_PS.dtype)
    else:
        tokens = sum(take(scores.num_tokens, side, pairs.valid) for side in (pairs.chosen, pairs.rejected))
        denominator = (weight_PS * tokens).sum(dim=1)
    return Totals((weight_PS * torch.where(pairs.valid, loss_PS, 0.0)).sum(dim=1), denominator, weight_PS.sum(dim=1))


def _per(values: Tensor, scores: GroupScores, side: Tensor, pairs: Pairs, normalize: str) -> Tensor:
    """Summed values as they are, or a token."""
    if normalize == "none":
        return values
    return values / take(scores.num_tokens, side, pairs.valid).clamp(min=1)

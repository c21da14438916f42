"""Dense weighted preference losses: a pair of every source, weighted; plain DPO and SimPO are their smallest case."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.objectives.links import logistic
from fuserl.objectives.pairing import Pairing, take, weigh
from fuserl.objectives.terms import GroupScores, Number, Pairs, Totals, one_of, within
from fuserl.objectives.weights import Rule


def fusepo_dpo(
    scores: GroupScores,
    *,
    pairs: Pairing,
    weights: Rule,
    beta: Number,
    normalize: str = "none",
    masked: str = "renormalise",
    count: str = "prompt",
    nll: Number = 0.0,
    label_smoothing: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """-Σ_k w_k log σ(β Δ_k), Δ the pair's gap of log-ratios against the reference.

    Source: arXiv:2504.06562, FusePO-DPO; one pair is arXiv:2305.18290 Eq. 7, with `normalize="length"` the
    length-normalised DPO of arXiv:2503.04222.

    Args:
        pairs: which responses are set against each other.
        weights: weight rule over the pairs' chosen rewards.
        beta: per nat of the log-ratio; with `normalize="length"` per nat a token, so other values fit (10, not 0.01).
        normalize: `none` takes summed log-ratios, `length` divides each by its response's tokens.
        masked: `renormalise` or `keep`, see `pairing.weigh`.
        count: the denominator: `prompt` counts prompts with a pair, `token` their weighted response tokens.
        nll: weight of the chosen responses' negative log-probs a token.
        label_smoothing: share of labels believed wrong, [0, 0.5).
        progress: not used.

    Raises:
        FuserlError: `normalize`, `masked` or `count` is none of these, or a number is out of range.
    """
    pairs_PS = weigh(scores, pairs(scores), weights, masked=masked)
    log_ratio_PK = scores.policy_logps - scores.reference_logps
    chosen, rejected = (take(log_ratio_PK, side, pairs_PS.valid) for side in (pairs_PS.chosen, pairs_PS.rejected))
    if one_of("normalize", normalize, "none", "length") == "length":
        chosen = a_token(chosen, scores, pairs_PS.chosen, pairs_PS.valid)
        rejected = a_token(rejected, scores, pairs_PS.rejected, pairs_PS.valid)
    loss_PS = logistic(within("beta", beta, "(0, inf)") * (chosen - rejected), label_smoothing=label_smoothing)
    return pair_totals(scores, pairs_PS, loss_PS, count=count, nll=nll)


def fusepo_simpo(
    scores: GroupScores,
    *,
    pairs: Pairing,
    weights: Rule,
    beta: Number,
    gamma_beta_ratio: Number,
    masked: str = "renormalise",
    count: str = "prompt",
    nll: Number = 0.0,
    label_smoothing: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """-Σ_k w_k log σ(β (log π(y⁺)/|y⁺| - log π(y⁻)/|y⁻|) - γ), γ = gamma_beta_ratio · β; no reference.

    Source: SimPO, arXiv:2405.14734 Eq. 6, summed over sources as in arXiv:2504.06562.

    Args:
        beta: per nat a token, 2 to 10 in the papers.
        gamma_beta_ratio: margin that the gap shall exceed, nats a token.
        pairs, weights, masked, count, nll, label_smoothing, progress: as in `fusepo_dpo`.

    Raises:
        FuserlError: `masked` or `count` is no choice, or a number is out of range.
    """
    pairs_PS = weigh(scores, pairs(scores), weights, masked=masked)
    chosen, rejected = (
        a_token(take(scores.policy_logps, side, pairs_PS.valid), scores, side, pairs_PS.valid)
        for side in (pairs_PS.chosen, pairs_PS.rejected)
    )
    above = chosen - rejected - within("gamma_beta_ratio", gamma_beta_ratio, "[0, inf)")
    loss_PS = logistic(within("beta", beta, "(0, inf)") * above, label_smoothing=label_smoothing)
    return pair_totals(scores, pairs_PS, loss_PS, count=count, nll=nll)


def pair_totals(scores: GroupScores, pairs: Pairs, loss_PS: Float[Tensor, "P S"], *, count: str, nll: Number) -> Totals:
    """Weigh the pairs' losses, add the NLL of the chosen sides, and sum over a prompt's pairs."""
    if within("nll", nll, "[0, inf)"):
        chosen = take(scores.policy_logps, pairs.chosen, pairs.valid)
        loss_PS = loss_PS - nll * a_token(chosen, scores, pairs.chosen, pairs.valid)
    sum_P = (pairs.weight * torch.where(pairs.valid, loss_PS, 0.0)).sum(dim=1)
    weight_P = pairs.weight.sum(dim=1)
    if one_of("count", count, "prompt", "token") == "prompt":
        return Totals(sum_P, (weight_P > 0).to(sum_P.dtype), weight_P)
    tokens_PS = sum(take(scores.num_tokens, side, pairs.valid) for side in (pairs.chosen, pairs.rejected))
    return Totals(sum_P, (pairs.weight * tokens_PS).sum(dim=1), weight_P)


def a_token(
    sums: Float[Tensor, "P S"], scores: GroupScores, side: Int[Tensor, "P S"], valid: Bool[Tensor, "P S"]
) -> Float[Tensor, "P S"]:
    """Sums over the responses at `side`, divided by their tokens."""
    return sums / take(scores.num_tokens, side, valid).clamp(min=1)

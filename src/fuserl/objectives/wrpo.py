"""Weighted-reward preference optimisation: a source's best and the target's best against the target's worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.objectives.links import logistic, squared
from fuserl.objectives.pairing import best_and_worst, mark, take, unweighted
from fuserl.objectives.preference import a_token
from fuserl.objectives.terms import GroupScores, Number, Pairs, Totals, one_of, within

Side = Float[Tensor, "P 1"]


class Triple(NamedTuple):
    """Columns of the three responses of each prompt."""

    source_best: Int[Tensor, "P 1"]
    target_best: Int[Tensor, "P 1"]
    target_worst: Int[Tensor, "P 1"]
    valid: Bool[Tensor, "P 1"]


def triple(scores: GroupScores, *, target: int) -> Triple:
    """Best of all sources but the target, and the target's own best and worst.

    Args:
        target: number of the target in the data set's list of sources.
    """
    own = scores.valid & (scores.source == target)
    others = scores.valid & (scores.source != target) & ~scores.rewards.isnan()
    source_best, _, _ = best_and_worst(scores.rewards, others)
    target_best, target_worst, differ = best_and_worst(scores.rewards, own)
    valid = differ & others.any(dim=1)
    return Triple(source_best[:, None], target_best[:, None], target_worst[:, None], valid[:, None])


def target_pairs(scores: GroupScores, *, target: int) -> Pairs:
    """The target's best against its worst, for metrics."""
    found = triple(scores, target=target)
    return unweighted(scores, found.target_best, found.target_worst, found.valid)


def read_by_wrpo(scores: GroupScores, *, target: int) -> Bool[Tensor, "P K"]:
    """The three responses of every prompt that has them."""
    *columns, valid = triple(scores, target=target)
    read = torch.zeros_like(scores.valid)
    for side in columns:
        read = read | mark(side, valid, scores.valid.shape[1])
    return read


def wrpo_dpo(
    scores: GroupScores,
    *,
    target: int,
    beta: Number,
    alpha: Number,
    schedule: str = "linear",
    form: str = "combined",
    count: str = "prompt",
    nll: Number = 0.0,
    label_smoothing: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """-log σ(α r(y_ws) + (1 - α) r(y_wt) - r(y_l)), r = β (log π - log π_ref) (arXiv:2412.03187).

    Args:
        target: number of the target in the data set's list of sources.
        beta: per nat of the summed log-ratio.
        alpha: weight of the source's response at the end of training, [0, 1].
        schedule: `linear` rises from 0 with the optimiser steps, `constant` stays at `alpha`.
        form: `combined` is the paper's formula; `average` the released code's α link(ws, l) + (1 - α) link(wt, l).
        count: the denominator: `prompt` counts prompts with all three responses, `token` those responses' tokens.
        nll: weight of the two preferred responses' negative log-probs a token, mixed by α.
        label_smoothing: share of labels believed wrong, [0, 0.5).
        progress: share of optimiser steps done, [0, 1).

    Raises:
        FuserlError: `schedule`, `form` or `count` is no choice, or a number is out of range.
    """
    within("beta", beta, "(0, inf)")
    log_ratio_PK = scores.policy_logps - scores.reference_logps
    return _wrpo(
        scores,
        triple(scores, target=target),
        lambda side, valid: beta * take(log_ratio_PK, side, valid),
        lambda margin: logistic(margin, label_smoothing=label_smoothing),
        alpha=scheduled(alpha, schedule, progress),
        form=form,
        count=count,
        nll=nll,
    )


def wrpo_simpo(
    scores: GroupScores,
    *,
    target: int,
    beta: Number,
    gamma_beta_ratio: Number,
    alpha: Number,
    schedule: str = "linear",
    form: str = "combined",
    count: str = "prompt",
    nll: Number = 0.0,
    label_smoothing: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """-log σ(α r(y_ws) + (1 - α) r(y_wt) - r(y_l) - γ), r = β log π / |y|, γ = gamma_beta_ratio · β (arXiv:2412.03187).

    Args:
        beta: per nat a token.
        gamma_beta_ratio: margin that the gap shall exceed, nats a token.
        target, alpha, schedule, form, count, nll, label_smoothing, progress: as in `wrpo_dpo`.

    Raises:
        FuserlError: `schedule`, `form` or `count` is no choice, or a number is out of range.
    """
    within("beta", beta, "(0, inf)")
    gamma = beta * within("gamma_beta_ratio", gamma_beta_ratio, "[0, inf)")
    return _wrpo(
        scores,
        triple(scores, target=target),
        lambda side, valid: beta * a_token(take(scores.policy_logps, side, valid), scores, side, valid),
        lambda margin: logistic(margin - gamma, label_smoothing=label_smoothing),
        alpha=scheduled(alpha, schedule, progress),
        form=form,
        count=count,
        nll=nll,
    )


def wrpo_ipo(
    scores: GroupScores,
    *,
    target: int,
    tau: Number,
    alpha: Number,
    schedule: str = "linear",
    form: str = "combined",
    count: str = "prompt",
    nll: Number = 0.0,
    progress: Number = 0.0,
) -> Totals:
    """(α ρ_ws + (1 - α) ρ_wt - ρ_l - 1/(2τ))², ρ = log π - log π_ref summed over the response (arXiv:2412.03187).

    Args:
        tau: per nat, > 0; not the temperature of weights.
        target, alpha, schedule, form, count, nll, progress: as in `wrpo_dpo`.

    Raises:
        FuserlError: `schedule`, `form` or `count` is no choice, or a number is out of range.
    """
    log_ratio_PK = scores.policy_logps - scores.reference_logps
    return _wrpo(
        scores,
        triple(scores, target=target),
        lambda side, valid: take(log_ratio_PK, side, valid),
        lambda margin: squared(margin, tau=tau),
        alpha=scheduled(alpha, schedule, progress),
        form=form,
        count=count,
        nll=nll,
    )


def scheduled(alpha: Number, schedule: str, progress: Number) -> float:
    """α at this share of the optimiser steps.

    >>> scheduled(0.1, "linear", 0.5), scheduled(0.1, "constant", 0.5)
    (0.05, 0.1)
    """
    within("alpha", alpha, "[0, 1]")
    return float(alpha * progress if one_of("schedule", schedule, "linear", "constant") == "linear" else alpha)


def _wrpo(
    scores: GroupScores,
    found: Triple,
    reward: Callable[[Tensor, Tensor], Side],
    link: Callable[[Side], Side],
    *,
    alpha: float,
    form: str,
    count: str,
    nll: Number,
) -> Totals:
    """The loss of the three responses; `reward(columns, valid)` is a response's implied reward."""
    *columns, valid = found
    of_source, of_target, worst = (reward(side, valid) for side in columns)
    if one_of("form", form, "combined", "average") == "combined":
        loss = link(alpha * of_source + (1 - alpha) * of_target - worst)
    else:
        loss = alpha * link(of_source - worst) + (1 - alpha) * link(of_target - worst)
    if within("nll", nll, "[0, inf)"):
        source_a_token, target_a_token = (
            a_token(take(scores.policy_logps, side, valid), scores, side, valid) for side in columns[:2]
        )
        loss = loss - nll * (alpha * source_a_token + (1 - alpha) * target_a_token)
    weight_P = valid[:, 0].to(loss.dtype)
    sum_P = torch.where(valid, loss, 0.0)[:, 0]
    if one_of("count", count, "prompt", "token") == "prompt":
        return Totals(sum_P, weight_P, weight_P)
    tokens = torch.cat([take(scores.num_tokens, side, valid) for side in columns], dim=1)
    return Totals(sum_P, tokens.sum(dim=1).to(loss.dtype), weight_P)

"""What is measured: sums and counts in one small table, so that packs and ranks simply add up.

A `Tally` has one row a slice (all prompts, each source, each domain) and one column a metric. Nothing is averaged
before the last moment, because a mean of means is another number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuserl.objectives.pairing import best_response
from fuserl.objectives.terms import GroupScores, Number, Pairs, Totals
from fuserl.tokens.store import VERDICT

METRICS = (
    "loss",  # the objective, over its own denominator
    "nll",  # of the best response of each prompt, nats a token
    "chosen_logps",  # raw, nats summed over the response
    "rejected_logps",
    "chosen_logps_per_token",
    "rejected_logps_per_token",
    "margin",  # log-ratios against the reference, or log-probs a token where there is none; nats
    "accuracy",  # share of pairs with a positive margin; a margin of nothing (step 0) counts half
    "chosen_tokens",
    "rejected_tokens",
    "clm",  # objective=distill, the loss's parts, over its denominator: loss = share · clm + (1 - share) · divergence
    "divergence",  # where P has no token the CLM stands in
    "given",  # share of the trained tokens for which P has a token
    "share",  # λ
)

TIE = 1e-4  # nats: margins below it are rounding


class Slices(NamedTuple):
    """Which slice of the report a prompt's domain and a response's source belong to."""

    sources: tuple[str, ...]
    domains: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Slice names in row order; the first, empty one is everything."""
        return ("", *(f"source/{name}" for name in self.sources), *(f"domain/{name}" for name in self.domains))


@dataclass
class Tally:
    """Sums and counts, [slices, metrics] each; float64, on the device of the model where it has doubles."""

    sum: Float[Tensor, "S M"]
    count: Float[Tensor, "S M"]

    @classmethod
    def empty(cls, slices: Slices, device: torch.device | str = "cpu") -> Tally:
        """All zeros."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        zeros = torch.zeros(len(slices.names), len(METRICS), dtype=dtype, device=device)
        return cls(zeros, zeros.clone())

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.sum + other.sum, self.count + other.count)

    def means(self, slices: Slices, prefix: str) -> dict[str, float]:
        """`prefix/metric[/slice]` for everything that was counted at least once."""
        value, seen = (self.sum / self.count.clamp(min=1e-300)).tolist(), (self.count > 0).tolist()
        return {
            f"{prefix}/{metric}" + (f"/{name}" if name else ""): value[row][column]
            for row, name in enumerate(slices.names)
            for column, metric in enumerate(METRICS)
            if seen[row][column]
        }


def chosen_not_good(
    pairs: Pairs, verdict: Int[Tensor, "P K"], rewards: Float[Tensor, "P K"], *, good_reward: Number | None
) -> float | None:
    """Share of the pairs whose chosen answer is not good: the best of bad answers is still preferred by the loss.

    Args:
        verdict: codes of `tokens.store.VERDICT`; any but right is not good, none at all does not judge.
        good_reward: an answer with a smaller reward is not good either (reward units); None does not judge.

    Returns:
        The share of the pairs that can be judged; None where there are none.
    """
    said = verdict.gather(1, pairs.chosen)
    has_verdict = said != VERDICT[None]
    bad = has_verdict & (said != VERDICT["right"])
    if good_reward is not None:
        bad = bad | (rewards.gather(1, pairs.chosen) < good_reward)
    judged = pairs.valid if good_reward is not None else pairs.valid & has_verdict
    return float((bad & judged).sum() / judged.sum()) if judged.any() else None


def tally(
    scores: GroupScores,
    totals: Totals,
    pairs: Pairs | None,
    domain: Int[Tensor, " P"],
    slices: Slices,
    *,
    against_reference: bool,
) -> Tally:
    """Measure one pack. `domain` holds each prompt's position in `slices.domains`."""
    into = Tally.empty(slices, scores.policy_logps.device)
    first_domain = 1 + len(slices.sources)
    domain = domain + first_domain
    present = scores.valid.any(dim=1)

    _add(into, "loss", totals.sum, totals.count, present, [domain])

    best = best_response(scores.rewards, scores.valid)[:, None]
    best_logps, best_tokens = _at(scores.policy_logps, best), _at(scores.num_tokens, best)
    _add(into, "nll", -best_logps, best_tokens, present, [domain, _at(scores.source, best) + 1])

    if pairs is not None:
        _tally_pairs(into, scores, pairs, domain, against_reference=against_reference)
    return into


def tally_parts(
    scores: GroupScores,
    parts: Mapping[str, Totals],
    num_given: Float[Tensor, "P K"],
    share: float,
    domain: Int[Tensor, " P"],
    slices: Slices,
) -> Tally:
    """Measure what one pack's loss is mixed of.

    Args:
        parts: `clm` and `divergence`, each put through the objective's loss.
        num_given: of each response, its trained tokens for which there is a distribution.
        share: λ.
    """
    into = Tally.empty(slices, num_given.device)
    where, present = domain + 1 + len(slices.sources), scores.valid.any(dim=1)
    for name, totals in parts.items():
        _add(into, name, totals.sum, totals.count, present, [where])
    owners = [where[:, None].expand_as(scores.valid), scores.source + 1]
    _add(into, "given", num_given, scores.num_tokens, scores.valid, owners)
    one = torch.ones_like(present, dtype=into.sum.dtype)
    _add(into, "share", share * one, one, present, [])
    return into


def _tally_pairs(into: Tally, scores: GroupScores, pairs: Pairs, domain: Tensor, *, against_reference: bool) -> None:
    keep = pairs.valid
    where = [domain[:, None].expand_as(keep), scores.source.gather(1, pairs.chosen) + 1]

    def column(values: Tensor, index: Tensor) -> Tensor:
        return torch.where(keep, values.gather(1, index).to(into.sum.dtype), 0)

    logps = [column(scores.policy_logps, side) for side in (pairs.chosen, pairs.rejected)]
    tokens = [column(scores.num_tokens, side) for side in (pairs.chosen, pairs.rejected)]
    reference = [column(scores.reference_logps, side) for side in (pairs.chosen, pairs.rejected)]
    per_token = [logp / count.clamp(min=1) for logp, count in zip(logps, tokens, strict=True)]
    sides = (
        [policy - anchor for policy, anchor in zip(logps, reference, strict=True)] if against_reference else per_token
    )
    margin = sides[0] - sides[1]
    one = torch.ones_like(margin)
    values = {
        "chosen_logps": logps[0],
        "rejected_logps": logps[1],
        "chosen_logps_per_token": per_token[0],
        "rejected_logps_per_token": per_token[1],
        "margin": margin,
        "accuracy": 0.5 * (1 + torch.where(margin.abs() > TIE, margin.sign(), 0.0)),
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
    }
    for name, value in values.items():
        _add(into, name, value, one, keep, where)


def _at(values: Tensor, column: Int[Tensor, "P 1"]) -> Tensor:
    return values.gather(1, column).squeeze(1)


def _add(into: Tally, metric: str, value: Tensor, count: Tensor, keep: Tensor, slices: list[Tensor]) -> None:
    """Nothing here makes the host wait for the device: shapes do not depend on values."""
    column = METRICS.index(metric)
    value, count = (torch.where(keep, part.detach().to(into.sum.dtype), 0).flatten() for part in (value, count))
    into.sum[0, column] += value.sum()
    into.count[0, column] += count.sum()
    for rows in slices:
        into.sum[:, column].index_add_(0, rows.flatten(), value)
        into.count[:, column].index_add_(0, rows.flatten(), count)

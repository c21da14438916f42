"""Learning from sparse token distributions: λ CLM + (1 - λ) divergence, from numbers at the support alone.

P is what the sources expect at a position, of which k tokens and the mass of the others are known. Q is the policy's. Both
are read as distributions over k + 1 events: each kept token, and one *bucket* for all others. What is computed over the
events is exact: no [T, V] tensor is needed for P, and none for Q (see `models.support`).

Temperature τ belongs to the policy's numbers (`Policy.temperature`) and acts on both sides:

| `tail` | P | Q |
|---|---|---|
| `renormalise` | softmax(log p / τ) over the kept tokens, nothing in the bucket | softmax(z / τ) over the vocabulary |
| `bucket` | softmax(log p / τ) over k + 1 events | softmax(log q / τ) over the same k + 1 events |
| `drop` | as `bucket`, then the bucket's term is left out of the sum | as `bucket`, likewise |

`renormalise` is FuseLLM's and FuseChat's (FuseChat step 5: softmax over the stored entries, zero elsewhere). `bucket` alone is
zero, with zero gradient, wherever P is the policy's own distribution. `drop` is a part of a divergence: it may be negative.
What P leaves to a single token of the bucket is not known, so there the temperature can only act on the bucket as one event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.objectives.terms import Number, Totals, one_of, within

NOTHING = -1e4  # the log of a probability of 0: finite, so that 0 times it is 0, and so is its gradient


class Fused(NamedTuple):
    """P at T positions: the sources' distributions, fused, in the target's vocabulary."""

    logps: Float[Tensor, "T k"]  # nats, any float type
    kept: Bool[Tensor, "T k"]  # False: no token, `logps` may hold anything. A token stands at most once in a row
    tail: Float[Tensor, " T"]  # log of the probability of all other tokens; -inf for none


class Policy(NamedTuple):
    """Q at the same positions, from its logits z over V tokens; fp32 or wider."""

    logits: Float[Tensor, "T k"]  # z of the kept tokens; where there is none, anything
    gold: Float[Tensor, " T"]  # z of the token that stands in the data
    rest: Float[Tensor, " T"]  # log Σ exp(z) over the tokens that are not kept; -inf where all are
    tempered: Float[Tensor, " T"]  # log Σ exp(z / τ) over the same
    temperature: float = 1.0  # τ; `tempered` is `rest` at 1


class Events(NamedTuple):
    """P and Q over E = k + 1 events, the bucket last. `NOTHING` where an event has no probability."""

    log_p: Float[Tensor, "T E"]  # nats
    log_q: Float[Tensor, "T E"]  # nats


class Sums(NamedTuple):
    """What U sequences add up to, before any division; nats."""

    clm: Float[Tensor, " U"]  # -log q(gold), temperature 1, over all positions
    divergence: Float[Tensor, " U"]  # of P and Q; where P has no token the CLM stands in, as P were one-hot on gold
    num_tokens: Float[Tensor, " U"]  # positions in the loss
    num_given: Float[Tensor, " U"]  # those of them where P has a token


Divergence = Callable[[Events], Tensor]  # [T], nats
Share = Callable[[Number], float]  # λ at a share of the run's steps


def cross_entropy(events: Events) -> Float[Tensor, " T"]:
    """-Σ p log q, a value a position: FuseLLM's and FuseChat's (arXiv:2401.10491, 2402.16107 Eq. 4, λ beside it in Eq. 5).

    Its gradient is `forward_kl`'s; it is P's entropy larger.
    """
    return -(events.log_p.exp() * events.log_q).sum(dim=1)


def forward_kl(events: Events) -> Float[Tensor, " T"]:
    """KL(P‖Q) = Σ p (log p - log q): covers all that the sources find likely."""
    return _kl(events.log_p, events.log_q)


def reverse_kl(events: Events, *, floor: Number) -> Float[Tensor, " T"]:
    """KL(Q‖P) = Σ q (log q - log p) over the kept tokens and the bucket: keeps to what the sources find likely.

    Args:
        floor: P's bucket is taken for at least so probable, (0, 1). Without it the divergence is infinite where P has
            nothing outside its k tokens, as with `renormalise` or a one-hot P, and the policy always has. P is not
            normalised again, so that where the floor is used the divergence may fall to -floor. `drop` has no bucket.

    Raises:
        FuserlError: `floor` is out of range.
    """
    least = math.log(within("/divergence.floor", floor, "(0, 1)"))
    log_p = torch.cat([events.log_p[:, :-1], events.log_p[:, -1:].clamp(min=least)], dim=1)
    return _kl(events.log_q, log_p)


def jensen_shannon(events: Events) -> Float[Tensor, " T"]:
    """½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q) / 2, over the kept tokens and the bucket: symmetric, at most ln 2."""
    log_m = torch.logaddexp(events.log_p, events.log_q) - math.log(2)
    return (_kl(events.log_p, log_m) + _kl(events.log_q, log_m)) / 2


def _kl(log_a: Float[Tensor, "T E"], log_b: Float[Tensor, "T E"]) -> Float[Tensor, " T"]:
    return (log_a.exp() * (log_a - log_b)).sum(dim=1)


def fixed(progress: Number, *, value: Number) -> float:
    """λ, the same throughout; the papers have 0.9.

    Raises:
        FuserlError: `value` is out of range.
    """
    return float(within("/share.value", value, "[0, 1]"))


def rising(progress: Number, *, start: Number) -> float:
    """λ from `start` in a straight line to 1 at the end of the run: FuseLLM's `hard_and_decay`.

    Args:
        progress: share of optimiser steps done, [0, 1].

    Raises:
        FuserlError: `start` is out of range.

    >>> rising(0.0, start=0.5), rising(0.5, start=0.5), rising(1.0, start=0.5)
    (0.5, 0.75, 1.0)
    """
    return float(within("/share.start", start, "[0, 1]") * (1 - progress) + progress)


def given(fused: Fused) -> Bool[Tensor, " T"]:
    """Where P has a token."""
    return fused.kept.any(dim=1)


def clm(kept: Bool[Tensor, "T k"], policy: Policy) -> Float[Tensor, " T"]:
    """-log q(gold), nats, a value a position; over the whole vocabulary, at temperature 1."""
    logits = torch.where(kept, policy.logits, -torch.inf)
    return torch.cat([logits, policy.rest[:, None]], dim=1).logsumexp(dim=1) - policy.gold


def events(fused: Fused, policy: Policy, *, tail: str = "renormalise") -> Events:
    """P and Q over the kept tokens and the bucket, at the policy's temperature. P carries no gradient.

    Args:
        tail: `renormalise`, `bucket` or `drop`, see the table above.

    Raises:
        FuserlError: `tail` is none of them.
    """
    one_of("tail", tail, "renormalise", "bucket", "drop")
    tau, dtype = policy.temperature, policy.logits.dtype
    nothing = torch.full_like(policy.rest, -torch.inf)
    tail_T = nothing if tail == "renormalise" else fused.tail.to(dtype) / tau
    log_p = _normalised(torch.where(fused.kept, fused.logps.to(dtype) / tau, -torch.inf), tail_T).detach()
    kept = torch.where(fused.kept, policy.logits, -torch.inf)
    if tail == "renormalise":
        return Events(_finite(log_p), _finite(_normalised(kept / tau, policy.tempered)))
    log_q = _normalised(kept, policy.rest)
    if tau != 1:
        log_q = _normalised(log_q[:, :-1] / tau, log_q[:, -1] / tau)
    if tail == "drop":
        log_p, log_q = (torch.cat([side[:, :-1], nothing[:, None]], dim=1) for side in (log_p, log_q))
    return Events(_finite(log_p), _finite(log_q))


def _normalised(kept: Float[Tensor, "T k"], bucket: Float[Tensor, " T"]) -> Float[Tensor, "T E"]:
    return torch.cat([kept, bucket[:, None]], dim=1).log_softmax(dim=1)


def _finite(logs: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
    return torch.where(logs > NOTHING, logs, NOTHING)  # the softmax of a row without a token is NaN: nothing as well


def summed(
    fused: Fused,
    policy: Policy,
    owner: Int[Tensor, " T"],
    mask: Bool[Tensor, " T"],
    *,
    num_sequences: int,
    divergence: Divergence,
    tail: str = "renormalise",
    temperature_power: Number = 0,
) -> Sums:
    """CLM and divergence of each sequence.

    Args:
        owner: the sequence of each position, in [0, num_sequences).
        mask: False: the position is absent, and everything about it may hold anything, NaN included.
        tail: see `events`.
        temperature_power: the divergence is multiplied by τ to this power: 0 in the papers, 2 keeps the gradient's size
            when τ is raised (arXiv:1503.02531 §2.1).

    Raises:
        FuserlError: `tail` is no choice, or a number is out of range.
    """
    kept = fused.kept & mask[:, None]
    fused = Fused(torch.where(kept, fused.logps, 0.0), kept, torch.where(mask, fused.tail, 0.0))
    gold, rest, tempered = (torch.where(mask, part, 0.0) for part in (policy.gold, policy.rest, policy.tempered))
    policy = Policy(torch.where(kept, policy.logits, 0.0), gold, rest, tempered, policy.temperature)
    known = given(fused)
    clm_T = torch.where(mask, clm(kept, policy), 0.0)
    factor = policy.temperature ** within("temperature_power", temperature_power, "[0, inf)")
    divergence_T = torch.where(known, factor * divergence(events(fused, policy, tail=tail)), clm_T)
    owner = torch.where(mask, owner, 0)

    def of_each(values: Tensor) -> Tensor:
        return values.new_zeros(num_sequences).index_add(0, owner, values)

    return Sums(*(of_each(values) for values in (clm_T, divergence_T, mask.to(clm_T.dtype), known.to(clm_T.dtype))))


def combined(sums: Sums, share: Number) -> Totals:
    """λ CLM + (1 - λ) divergence (arXiv:2402.16107 Eq. 5; the same in arXiv:2401.10491), counted in positions.

    Where P has no token the loss is CLM, whatever λ.

    Args:
        share: λ. At 1 the divergence is not looked at, at 0 the CLM is not.

    Raises:
        FuserlError: λ is not in [0, 1].
    """
    within("share", share, "[0, 1]")
    parts = [weight * part for weight, part in ((share, sums.clm), (1 - share, sums.divergence)) if weight]
    return Totals(sum(parts[1:], parts[0]), sums.num_tokens, (sums.num_tokens > 0).to(sums.num_tokens.dtype))


@dataclass(frozen=True)
class Distillation:
    """What `objective=distill` puts in the place of a response's negative log-likelihood.

    Attributes:
        path: a folder of fused distributions, as `fuserl align` writes it.
        divergence: `cross_entropy` (the papers'), `forward_kl`, `reverse_kl` or `jensen_shannon`.
        share: λ by progress, `fixed` or `rising`.
        temperature: τ of both sides, > 0; 1 in the papers.
        temperature_power: the divergence is multiplied by τ to this power, see `summed`.
        tail: what becomes of the probability that is not kept, see `events`.

    Raises:
        FuserlError: a choice or a number is none of the allowed ones.
    """

    path: str
    divergence: Any  # a `Divergence`; a name instead of a function is a user's slip, answered below
    share: Any  # a `Share`; likewise
    temperature: Number
    temperature_power: Number
    tail: str

    def __post_init__(self) -> None:
        for group in ("divergence", "share"):
            if not callable(chosen := getattr(self, group)):
                raise FuserlError(
                    f"`{chosen}` is no function",
                    where=f"`objective.distillation.{group}`",
                    hint=f"choose a file of `conf/{group}` with `{group}={chosen}`",
                )
        within("distillation.temperature", self.temperature, "(0, inf)")
        within("distillation.temperature_power", self.temperature_power, "[0, inf)")
        one_of("distillation.tail", self.tail, "renormalise", "bucket", "drop")
        self.share(0.0)  # both say now what is wrong with their numbers
        self.divergence(Events(torch.zeros(1, 2), torch.zeros(1, 2)))

    def sums(self, fused: Fused, policy: Policy, owner: Int[Tensor, " T"], *, num_sequences: int) -> Sums:
        """See `summed`."""
        return summed(
            fused, policy, owner, torch.ones_like(owner, dtype=torch.bool), num_sequences=num_sequences,
            divergence=self.divergence, tail=self.tail, temperature_power=self.temperature_power,
        )  # fmt: skip

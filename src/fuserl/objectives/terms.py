"""The table that every objective reads, and the totals that every objective returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuserl.errors import FuserlError

Number = float | int  # a hyper-parameter: YAML and the command line write 1 for 1.0


class GroupScores(NamedTuple):
    """P prompts by K responses, padded; the only thing an objective may read.

    Entries with `valid` False are absent: they may hold anything, NaN included.
    """

    policy_logps: Float[Tensor, "P K"]  # nats, summed over response tokens
    reference_logps: Float[Tensor, "P K"]  # nats, summed; zeros when the objective has no reference
    num_tokens: Int[Tensor, "P K"]  # response tokens, end-of-turn counted
    rewards: Float[Tensor, "P K"]  # the scorer's units, higher is better; NaN where unscored
    source: Int[Tensor, "P K"]  # index into the data set's list of sources
    given: Float[Tensor, "P K"]  # weights given by the data; NaN where none
    valid: Bool[Tensor, "P K"]  # False: this prompt has fewer than K responses


class Totals(NamedTuple):
    """One total a prompt, never a mean. `count` and `weight` depend on data only, not on log-probs."""

    sum: Float[Tensor, " P"]  # the prompt's loss
    count: Float[Tensor, " P"]  # the prompt's share of the optimiser step's denominator
    weight: Float[Tensor, " P"]  # total weight applied: sum / weight is ln 2 at step 0 for the DPO family


class Pairs(NamedTuple):
    """At most S chosen/rejected pairs a prompt, as column numbers of the table."""

    chosen: Int[Tensor, "P S"]
    rejected: Int[Tensor, "P S"]
    weight: Float[Tensor, "P S"]  # zero where `valid` is False
    valid: Bool[Tensor, "P S"]


@dataclass(frozen=True)
class Objective:
    """A loss together with what the rest of the program must know about it.

    Attributes:
        name: as in `conf/objective/`.
        loss: `loss(scores, progress=float) -> Totals`; progress is the share of optimiser steps done, [0, 1).
        select: `select(scores) -> Bool[P, K]`, the responses whose log-probs the loss reads. Uses rewards, sources
            and validity only. A table cut down to them gives the same totals.
        pairs: `pairs(scores) -> Pairs`, what preference metrics look at; None for objectives without pairs.
        uses_reference: whether `reference_logps` must be filled.
        starts_at_ln2: whether sum / weight is ln 2 when policy and reference agree (with `nll=0`).
        linear: whether the loss is linear in log-probs, so that its slopes are known before they are.
        units: `units(scores) -> Int[P, K]`: a slope depends on log-probs of the same number alone; None where it
            may depend on all of its prompt. Uses rewards, sources and validity only. It saves memory, nothing else.
        reads: what the data must hold, for messages: "rewards", "samples" (several of one source), "target".
        distillation: a `distillation.Distillation`: `policy_logps` are then its mixed losses, negated, while training.
    """

    name: str
    loss: Callable[..., Totals]
    select: Callable[[GroupScores], Tensor]
    pairs: Callable[[GroupScores], Pairs] | None = None
    uses_reference: bool = False
    starts_at_ln2: bool = False
    linear: bool = False
    units: Callable[[GroupScores], Tensor] | None = None
    reads: tuple[str, ...] = ()
    distillation: Any = None

    @classmethod
    def of(
        cls,
        name: str,
        loss: Callable[..., Totals],
        select: Callable[[GroupScores], Tensor],
        pairs: Any = None,  # a name instead of a function is a user's slip, answered below
        uses_reference: bool = False,
        starts_at_ln2: bool = False,
        linear: bool = False,
        units: Callable[[GroupScores], Tensor] | None = None,
        reads: Iterable[str] = (),
        distillation: Any = None,
        **hypers: Any,
    ) -> Objective:
        """An objective whose hyper-parameters stand beside its name, so that `objective.beta=0.1` sets one.

        Args:
            hypers: keyword arguments of `loss`.

        Raises:
            FuserlError: the loss has no such hyper-parameter, or lacks one; `pairs` is a name instead of a function.
        """
        if pairs is not None and not callable(pairs):
            raise FuserlError(
                f"`{pairs}` is no function that finds pairs",
                where="`objective.pairs`",
                hint=f"choose a file of `conf/pairs` with `pairs={pairs}`",
            )
        takes = {
            key: parameter
            for key, parameter in inspect.signature(loss).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        unknown = sorted(set(hypers) - set(takes))
        missing = sorted(key for key, p in takes.items() if p.default is p.empty and key not in hypers)
        if unknown or missing:
            what = [f"it does not take {', '.join(unknown)}"] if unknown else []
            what += [f"it needs {', '.join(missing)}"] if missing else []
            raise FuserlError(
                f"the settings of objective `{name}` do not fit its loss: {'; '.join(what)}",
                where=f"`conf/objective/{name}.yaml`, or `objective.*` on the command line",
                hint=f"the loss takes {', '.join(sorted(set(takes) - {'progress'}))}",
            )
        return cls(
            name, partial(loss, **hypers), select, pairs, uses_reference, starts_at_ln2, linear, units, tuple(reads),
            distillation,
        )  # fmt: skip


def within(key: str, value: Number, interval: str) -> Number:
    """`value`, if it is a number in the interval, such as "(0, inf)" or "[0, 0.5)".

    Args:
        key: below `objective`; with a slash in front, from the top.

    Raises:
        FuserlError: it is not.

    >>> within("beta", 0.1, "(0, inf)")
    0.1
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = isinstance(value, float | int) and low <= value <= high
    if not inside or (value == low and interval[0] == "(") or (value == high and interval[-1] == ")"):
        raise FuserlError(
            f"`{value}` is no value of `{key.lstrip('/')}`",
            where=f"`{key[1:] if key.startswith('/') else f'objective.{key}'}`",
            hint=f"give a number in {interval}",
        )
    return value


def one_of(key: str, value: str, *allowed: str) -> str:
    """`value`, if it is allowed.

    Raises:
        FuserlError: it is not.
    """
    if value not in allowed:
        raise FuserlError(
            f"`{value}` is no choice of `{key}`", where=f"`objective.{key}`", hint=f"one of {', '.join(allowed)}"
        )
    return value

"""The policy at the support of sparse distributions: a few logits and one sum a token. [T, V] logits never exist.

The vocabulary is read a slice of tokens at a time, in forward and once more in backward, which knows every slope by then:
four matrix products a token in all. Of the tokens that are not kept, the log of the summed exponentials is taken on its
own, not as a difference: a bucket of one millionth has the same relative precision as one of a half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fuserl.models.head import Head, Workspace, in_one_precision
from fuserl.objectives.distillation import Policy
from fuserl.objectives.terms import Number, within


def at_support(
    hidden: Float[Tensor, "T D"],
    head: Head,
    labels: Int[Tensor, " T"],
    ids: Int[Tensor, "T k"],
    *,
    rows: int,
    temperature: Number = 1.0,
    room: Workspace | None = None,
) -> Policy:
    """What a divergence reads of the policy, differentiable once by states, weight and bias.

    Args:
        labels: the token that stands at each position, in [0, V).
        ids: the kept tokens, in [0, V), each at most once in a row; -1 where there is none: logit 0, no gradient.
        rows: tokens, the most whose logits may exist at a time.
        temperature: τ of `Policy.tempered`, > 0. At 1 it costs nothing, else a second exponential.
        room: memory for logits, kept between packs.

    Raises:
        FuserlError: the temperature is not above 0.
    """
    setting = _Setting(head.softcap, head.scale, float(within("temperature", temperature, "(0, inf)")), rows)
    logits, gold, rest, tempered = _AtSupport.apply(
        hidden, head.weight, head.bias, labels, ids, setting, room or Workspace()
    )
    return Policy(logits, gold, rest, tempered, setting.temperature)


def of_logits(
    logits: Float[Tensor, "T V"], labels: Int[Tensor, " T"], ids: Int[Tensor, "T k"], *, temperature: Number = 1.0
) -> Policy:
    """The same from all logits, by autograd: for models whose head is not known, and the oracle."""
    wide = logits.to(torch.promote_types(torch.float32, logits.dtype))
    there = ids >= 0
    held = wide.new_zeros(len(wide), wide.shape[1] + 1, dtype=torch.bool)
    held = held.scatter(1, torch.where(there, ids, wide.shape[1]), True)[:, :-1]
    tau = float(within("temperature", temperature, "(0, inf)"))
    rest, tempered = (torch.where(held, -torch.inf, wide / part).logsumexp(dim=1) for part in (1.0, tau))
    picked = torch.where(there, wide.gather(1, ids.clamp(min=0)), 0.0)
    return Policy(picked, wide.gather(1, labels[:, None])[:, 0], rest, tempered, tau)


class _Setting(NamedTuple):
    softcap: float | None
    scale: float
    temperature: float
    rows: int

    def cuts(self, count: int) -> Iterator[slice]:
        """Slices of so many rows as have room at a time."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))


class _AtSupport(torch.autograd.Function):
    """Slices in forward, the same slices again in backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, ids, setting, room):
        """Logits [R, k] at `ids`; [R] the label's, and the log-sum of all others' at temperatures one and `temperature`."""
        with in_one_precision(hidden, Head(weight, bias, setting.softcap, setting.scale)) as (states, head):
            wide = torch.promote_types(torch.float32, states.dtype)
            logits = torch.zeros(ids.shape, dtype=wide, device=hidden.device)
            gold, rest, tempered = (torch.empty(len(hidden), dtype=wide, device=hidden.device) for _ in range(3))
            for cut in setting.cuts(len(hidden)):
                scores = _scores(states[cut], head, room)
                gold[cut] = _pick(scores, labels[cut, None])[:, 0]
                logits[cut] = torch.where(ids[cut] >= 0, _pick(scores, ids[cut]), 0.0)
                _leave_out(scores, ids[cut])
                if setting.temperature != 1:
                    tempered[cut] = _log_total(scores / setting.temperature)
                rest[cut] = _log_total(scores)
            if setting.temperature == 1:
                tempered.copy_(rest)
            ctx.precision = states.dtype
        ctx.setting, ctx.room = setting, room
        ctx.save_for_backward(hidden, weight, bias, labels, ids, rest, tempered)
        return logits, gold, rest, tempered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *slopes):
        """Of the four results: gradients of states, weight and bias, each where it is asked for."""
        hidden, weight, bias, labels, ids, rest, tempered = ctx.saved_tensors
        setting, dtype = ctx.setting, ctx.precision
        with in_one_precision(hidden, Head(weight, bias, setting.softcap, setting.scale), dtype) as (states, head):
            found = _Gradients.empty(states, head, ctx.needs_input_grad)
            for cut in setting.cuts(len(hidden)):
                mine, sums = (tuple(part[cut] for part in parts) for parts in (slopes, (rest, tempered)))
                towards = _towards(_scores(states[cut], head, ctx.room), labels[cut], ids[cut], sums, mine, setting)
                found.add(cut, states[cut], head.weight, towards[:, : len(weight)].to(dtype))
        by_hidden, by_weight, by_bias = (
            part if part is None or source is None else part.to(source.dtype)
            for part, source in zip(found, (hidden, weight, bias), strict=True)
        )
        return by_hidden, by_weight, by_bias, None, None, None, None


class _Gradients(NamedTuple):
    """By states, weight and bias; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def empty(cls, states: Tensor, head: Head, needed: Sequence[bool]) -> _Gradients:
        """Zeros; sums over rows in at least float32."""
        wide = torch.promote_types(torch.float32, states.dtype)
        return cls(
            torch.zeros_like(states) if needed[0] else None,
            torch.zeros_like(head.weight, dtype=wide) if needed[1] else None,
            torch.zeros_like(head.bias, dtype=wide) if needed[2] and head.bias is not None else None,
        )

    def add(self, cut: slice, states: Tensor, weight: Tensor, towards: Tensor) -> None:
        """A slice whose loss has these slopes by W h + b."""
        if self.hidden is not None:
            self.hidden[cut] = towards @ weight
        if self.weight is not None and self.weight.dtype == towards.dtype:
            self.weight.addmm_(towards.T, states)
        elif self.weight is not None:
            self.weight.add_(towards.T @ states)
        if self.bias is not None:
            self.bias.add_(towards.sum(dim=0, dtype=self.bias.dtype))


def _scores(states: Tensor, head: Head, room: Workspace) -> Float[Tensor, "R W"]:
    """The model's logits, W = V + 1: the last column is nobody's, and stands for the place without a token."""
    wide = torch.promote_types(torch.float32, states.dtype)
    scores = room.rows(len(states), len(head.weight) + 1, states, wide)
    logits = scores[:, :-1]
    if states.dtype == wide:
        torch.mm(states, head.weight.t(), out=logits)
        logits += 0 if head.bias is None else head.bias
    else:
        logits.copy_(F.linear(states, head.weight, head.bias))
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    scores[:, -1] = -torch.inf
    return scores


def _places(ids: Int[Tensor, "R k"], scores: Float[Tensor, "R W"]) -> Int[Tensor, "R k"]:
    return torch.where(ids >= 0, ids, scores.shape[1] - 1)


def _pick(scores: Float[Tensor, "R W"], ids: Int[Tensor, "R k"]) -> Float[Tensor, "R k"]:
    return scores.gather(1, _places(ids, scores))


def _leave_out(scores: Float[Tensor, "R W"], ids: Int[Tensor, "R k"]) -> None:
    """In place: what is not kept remains."""
    scores.scatter_(1, _places(ids, scores), -torch.inf)


def _log_total(scores: Float[Tensor, "R W"]) -> Float[Tensor, " R"]:
    """log Σ exp of each row, which is overwritten; -inf where all are."""
    top = _or_zero(scores.amax(dim=1))
    return top + scores.sub_(top[:, None]).exp_().sum(dim=1).log()


def _or_zero(logs: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    return torch.where(logs == -torch.inf, 0.0, logs)


def _towards(
    scores: Float[Tensor, "R W"],
    labels: Int[Tensor, " R"],
    ids: Int[Tensor, "R k"],
    sums: Sequence[Tensor],
    slopes: Sequence[Tensor],
    setting: _Setting,
) -> Float[Tensor, "R W"]:
    """Slopes by W h + b, given those by the four outputs and two of these; in place of the logits."""
    (rest, tempered), (to_logits, to_gold, to_rest, to_tempered), tau = sums, slopes, setting.temperature
    cap = None if setting.softcap is None else (scores[:, :-1] / setting.softcap).square_().neg_().add_(1)
    _leave_out(scores, ids)
    if tau == 1:
        towards = _shares(scores, rest, to_rest + to_tempered)
    else:
        more = _shares(scores / tau, tempered, to_tempered / tau)
        towards = _shares(scores, rest, to_rest).add_(more)
    towards.scatter_add_(1, _places(ids, scores), to_logits)
    towards.scatter_add_(1, labels[:, None], to_gold[:, None])
    if cap is not None:
        towards[:, :-1].mul_(cap)
    return towards.mul_(setting.scale)


def _shares(scores: Float[Tensor, "R W"], log_total: Float[Tensor, " R"], slope: Float[Tensor, " R"]) -> Tensor:
    """slope · exp(score - log_total), in place: the slope of a log-sum, shared among its terms."""
    return scores.sub_(_or_zero(log_total)[:, None]).exp_().mul_(slope[:, None])

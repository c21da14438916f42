"""The language-model head on trained tokens only. [R, V] logits never exist: at most `rows` of them at a time.

A loss of a prompt depends on its own responses alone, and often it falls into parts: a pair's slopes depend on the pair.
So slopes are known as soon as the part's log-probs are, and the head's gradients are computed at once, while the
exponentials of the logits are still there: three matrix products a token in all, none computed twice. Only a part
whose trained tokens are more than `rows` goes through the head again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fuserl.models.spans import Span, few, size_of


class Head(NamedTuple):
    """log softmax(cap(scale · (W h + b)))."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None = None  # final soft-capping (Gemma-2)
    scale: float = 1.0  # factor of the logits before it (Cohere, Granite)

    @classmethod
    def of(cls, model: Any) -> Head:
        """A causal LM's head."""
        linear, config = model.get_output_embeddings(), model.config
        bias = linear.bias if isinstance(getattr(linear, "bias", None), Tensor) else None
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        return cls(linear.weight, bias, getattr(config, "final_logit_softcapping", None), scale)

    def logits(self, hidden: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        """In fp32 or wider, before the cap."""
        logits = F.linear(hidden, self.weight, self.bias)
        return logits.to(torch.promote_types(torch.float32, logits.dtype))


class Workspace:
    """Memory for one slice of logits, kept between packs: on a processor, fresh memory costs as much as what fills it.

    Rows begin at multiples of 64 bytes, which matrix products like (a fifth faster for a vocabulary of 50 257).
    """

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def rows(self, count: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """[count, width], uninitialised; what an earlier call returned is overwritten."""
        stride = -(-width // 16) * 16
        if self.memory.dtype != dtype or self.memory.device != like.device or self.memory.numel() < count * stride:
            self.memory = torch.empty(0)
            self.memory = torch.empty(count * stride, dtype=dtype, device=like.device)
        return self.memory[: count * stride].view(count, stride)[:, :width]


class LossAt(NamedTuple):
    """A loss at given log-probs."""

    sum: Float[Tensor, ""]
    slopes: Float[Tensor, " U"]  # its derivative by them


Loss = Callable[[Span, Tensor], LossAt]


def token_logps(
    hidden: Float[Tensor, "R D"], head: Head, labels: Int[Tensor, " R"], *, rows: int, room: Workspace | None = None
) -> Float[Tensor, " R"]:
    """log-probs of the labels, nats. Differentiable by recomputing each slice: simple, and the oracle of `head_loss`."""
    cuts = [slice(start, start + rows) for start in range(0, max(len(labels), 1), rows)]
    if torch.is_grad_enabled():
        again = partial(checkpoint, _differentiable, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(hidden[cut], head, labels[cut]) for cut in cuts])
    room = room or Workspace()
    with in_one_precision(hidden, head) as (states, cast):
        return torch.cat([_exponentials(states[cut], cast, labels[cut], room).logps for cut in cuts])


def _differentiable(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    logits = head.logits(hidden) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.gather(1, labels[:, None]).squeeze(1) - logits.logsumexp(dim=1)


class _Exponentials(NamedTuple):
    logps: Tensor  # [R]
    values: Tensor  # [R, V], exp(logit - the row's largest)
    total: Tensor  # [R, 1], their sum
    slope: Tensor | None  # [R, V], derivative of the soft-cap


def _exponentials(hidden: Tensor, head: Head, labels: Tensor, room: Workspace) -> _Exponentials:
    """In place: one [R, V] buffer, two where logits are capped."""
    wide, slope = torch.promote_types(torch.float32, hidden.dtype), None
    logits = room.rows(len(hidden), len(head.weight), hidden, wide)
    if hidden.dtype == wide:
        torch.mm(hidden, head.weight.t(), out=logits)
        logits += 0 if head.bias is None else head.bias
    else:
        logits.copy_(F.linear(hidden, head.weight, head.bias))
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        slope = logits.square().neg_().add_(1)
        logits.mul_(head.softcap)
    logits.sub_(logits.amax(dim=1, keepdim=True))
    chosen = logits.gather(1, labels[:, None])
    total = logits.exp_().sum(dim=1, keepdim=True)
    return _Exponentials((chosen - total.log()).squeeze(1), logits, total, slope)


class _Gradients:
    """dL/d(hidden, weight, bias), grown slice by slice from dL/d(log-probs)."""

    def __init__(self, hidden: Tensor, head: Head, needed: Sequence[bool]) -> None:
        wide = torch.promote_types(torch.float32, hidden.dtype)
        self.head, self.source = head, hidden
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=wide) if needed[2] and head.bias is not None else None

    def add(self, at: slice | Tensor, labels: Tensor, found: _Exponentials, slopes: Tensor) -> None:
        """Rows `at`, whose log-probs have these slopes. d log p_y = d logit_y - Σ_v p_v d logit_v."""
        towards = slopes[:, None] * self.head.scale
        share = towards / found.total
        if found.slope is not None:
            towards = towards * found.slope.gather(1, labels[:, None])
            found.values.mul_(found.slope)
        hidden, weight = self.source[at], self.head.weight
        values, towards, share = (part.to(hidden.dtype) for part in (found.values, towards, share))
        if self.hidden is not None:
            self.hidden[at] = towards * weight[labels] - share * (values @ weight)
        if self.weight is not None:
            if self.weight.dtype == hidden.dtype:
                self.weight.addmm_(values.T, share * hidden, alpha=-1)
            else:
                self.weight.sub_(values.T @ (share * hidden))
            self.weight.index_add_(0, labels, (towards * hidden).to(self.weight.dtype))
        if self.bias is not None:
            self.bias.sub_((values.T @ share).squeeze(1))
            self.bias.index_add_(0, labels, towards.squeeze(1).to(self.bias.dtype))


class _HeadLoss(torch.autograd.Function):
    """Gradients in forward; backward scales them by the one number that comes from above."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, head, labels, owner, spans, loss, rows, linear, room):
        """The loss's sum, and the responses' log-probs [U] that it is made of, which carry no gradient."""
        with in_one_precision(hidden, head) as (states, cast):
            gradients = _Gradients(states, cast, ctx.needs_input_grad)
            total, logps = _walk(gradients, labels, owner, spans, loss, rows, linear, room)
        ctx.gradients = gradients
        ctx.dtypes = [None if part is None else part.dtype for part in (hidden, weight, bias)]
        ctx.mark_non_differentiable(logps)
        return total, logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _):
        """Raises: RuntimeError: a second time: the first has scaled the gradients in place."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a head's loss are computed once: backward cannot run twice")
        found, ctx.gradients = ctx.gradients, None
        scaled = (
            None if part is None else part.mul_(upstream.to(part.dtype)).to(dtype)
            for part, dtype in zip((found.hidden, found.weight, found.bias), ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None, None, None, None


@contextmanager
def in_one_precision(hidden: Tensor, head: Head, dtype: torch.dtype | None = None) -> Iterator[tuple[Tensor, Head]]:
    """States and weights in one precision, and autocast out of the way.

    Args:
        dtype: of both; None: what autocast asks for, else that of the states.
    """
    device = hidden.device.type
    if dtype is None:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        yield hidden.to(dtype), Head(head.weight.to(dtype), bias, head.softcap, head.scale)


def _walk(
    gradients: _Gradients,
    labels: Tensor,
    owner: Tensor,
    spans: Sequence[Span],
    loss: Loss,
    rows: int,
    linear: bool,
    room: Workspace,
) -> tuple[Tensor, Tensor]:
    """(summed loss, log-probs of the unique responses); fills `gradients`."""
    hidden, head = gradients.source, gradients.head
    wide = torch.promote_types(torch.float32, hidden.dtype)
    logps = torch.zeros(spans[-1].responses[1], dtype=wide, device=hidden.device)
    whole = Span(*((0, range_[1]) for range_ in spans[-1][:3]))
    given = loss(whole, logps).slopes if linear else None
    total = torch.zeros((), dtype=wide, device=hidden.device)

    def scored(at: slice | Tensor) -> _Exponentials:
        found = _exponentials(hidden[at], head, labels[at], room)
        logps.index_add_(0, owner[at], found.logps)
        return found

    for span in spans:
        mine = LossAt(total, total)
        for piece in span.pieces:
            whole_piece = given is None and size_of(piece) <= rows
            cuts = list(_cuts(piece, rows if whole_piece else few(rows), hidden.device))
            if given is not None:
                for at in cuts:
                    gradients.add(at, labels[at], scored(at), given[owner[at]])
                continue
            kept = [scored(at) for at in cuts] if len(cuts) < 2 else [scored(at) and None for at in cuts]
            mine = loss(span, logps[slice(*span.responses)])  # the sum is true once the last piece is scored
            for at, found in zip(cuts, kept, strict=True):
                found = found or _exponentials(hidden[at], head, labels[at], room)
                gradients.add(at, labels[at], found, mine.slopes[owner[at] - span.responses[0]])
        total = total + mine.sum
    return (loss(whole, logps).sum if linear else total), logps


def _cuts(piece: Sequence[slice], rows: int, device: torch.device) -> Iterator[slice | Tensor]:
    """A piece, at most `rows` at a time."""
    if len(piece) == 1:
        yield from (slice(at, min(at + rows, piece[0].stop)) for at in range(piece[0].start, piece[0].stop, rows))
    else:
        yield from torch.cat([torch.arange(part.start, part.stop, device=device) for part in piece]).split(rows)


def head_loss(
    hidden: Float[Tensor, "R D"],
    head: Head,
    labels: Int[Tensor, " R"],
    owner: Int[Tensor, " R"],
    spans: Sequence[Span],
    loss: Loss,
    *,
    rows: int,
    linear: bool,
    room: Workspace | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " U"]]:
    """A loss of the responses' log-probs, differentiable once, and the log-probs (nats) themselves, detached.

    Args:
        owner: the unique response of each row, ascending.
        spans: cover all prompts in order, see `spans_of`.
        loss: of a span, given the log-probs of its responses.
        rows: the most whose logits may exist at a time.
        linear: whether the slopes do not depend on log-probs (supervised objectives): then nothing is ever recomputed.
    """
    return _HeadLoss.apply(
        hidden, head.weight, head.bias, head, labels, owner, spans, loss, rows, linear, room or Workspace()
    )

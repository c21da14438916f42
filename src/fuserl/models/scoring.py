"""Log-probs of a pack's responses: the fast way, the slow oracle beside it, and the check that they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fuserl.errors import FuserlError
from fuserl.models.attention import packing
from fuserl.models.head import Head, LossAt, Workspace, head_loss, token_logps
from fuserl.models.layout import PackLayout
from fuserl.models.spans import Span, few, spans_of
from fuserl.models.support import at_support, of_logits
from fuserl.objectives.distillation import Policy
from fuserl.objectives.terms import GroupScores, Number, Totals
from fuserl.tokens.collate import GroupBatch, Segment

TableLoss = Callable[[GroupScores], Totals]  # an objective's loss with its progress filled in


class PackLoss(NamedTuple):
    """The objective on one pack."""

    sum: Float[Tensor, ""]  # over prompts, undivided; differentiable once
    logps: Float[Tensor, " U"]  # summed log-probs of the unique responses, nats, detached


@runtime_checkable
class Scoring(Protocol):
    """A way to run a policy over packs."""

    def score(self, model: nn.Module, batch: GroupBatch) -> Float[Tensor, " U"]:
        """Summed log-probs (nats) of the pack's unique responses."""
        ...

    def loss(self, model: nn.Module, batch: GroupBatch, loss: TableLoss) -> PackLoss:
        """The objective on the pack."""
        ...

    def support(self, model: nn.Module, batch: GroupBatch, temperature: Number) -> Policy:
        """What a divergence from the pack's distributions reads of the policy, at every trained token."""
        ...


@dataclass(frozen=True)
class Packed:
    """Prompts computed once, gradients of the head in forward.

    Attributes:
        rows: trained tokens, the most whose logits may exist at a time.
        linear: whether the objective is linear in log-probs.
        room: memory for logits, kept between packs.
    """

    backend: str
    rows: int
    linear: bool = False
    room: Workspace = field(default_factory=Workspace)

    def score(self, model: nn.Module, batch: GroupBatch) -> Float[Tensor, " U"]:
        """See `Scoring`."""
        return score_batch(model, batch, backend=self.backend, rows=few(self.rows), room=self.room)

    def loss(self, model: nn.Module, batch: GroupBatch, loss: TableLoss) -> PackLoss:
        """See `Scoring`."""
        head = Head.of(causal_lm(model))
        spans = spans_of(batch.segments, len(batch.row), self.rows)
        return PackLoss(
            *head_loss(
                trained_states(model, batch, self.backend), head, batch.labels, batch.owner, spans,
                partial(_loss_at, batch, loss), rows=self.rows, linear=self.linear, room=self.room,
            )
        )  # fmt: skip

    def support(self, model: nn.Module, batch: GroupBatch, temperature: Number) -> Policy:
        """See `Scoring`."""
        return at_support(
            trained_states(model, batch, self.backend), Head.of(causal_lm(model)), batch.labels, batch.support_ids,
            rows=self.rows, temperature=temperature, room=self.room,
        )  # fmt: skip


@dataclass(frozen=True)
class Padded:
    """The oracle: separate padded forwards, full logits, autograd throughout."""

    def score(self, model: nn.Module, batch: GroupBatch) -> Float[Tensor, " U"]:
        """See `Scoring`."""
        return score_padded(model, batch)

    def loss(self, model: nn.Module, batch: GroupBatch, loss: TableLoss) -> PackLoss:
        """See `Scoring`."""
        logps = score_padded(model, batch)
        return PackLoss(loss(table(batch, logps)).sum.sum(), logps.detach())

    def support(self, model: nn.Module, batch: GroupBatch, temperature: Number) -> Policy:
        """See `Scoring`."""
        ids, mask, _ = _padded(batch)
        logits = causal_lm(model)(input_ids=ids, attention_mask=mask, use_cache=False).logits
        row, place = (torch.tensor(part, dtype=torch.long, device=ids.device) for part in _predicting(batch))
        return of_logits(logits[row, place], batch.labels, batch.support_ids, temperature=temperature)


def _predicting(batch: GroupBatch) -> tuple[list[int], list[int]]:
    """(row, column) of the padded table where each trained token is predicted."""
    branches = [segment for segment in batch.segments if not segment.is_prompt]
    ends = [s.prompt[1] - s.prompt[0] + s.end - s.start for s in branches]
    places = [range(end - s.trained - 1, end - 1) for s, end in zip(branches, ends, strict=True)]
    return [row for row, mine in enumerate(places) for _ in mine], [at for mine in places for at in mine]


def _loss_at(batch: GroupBatch, loss: TableLoss, span: Span, logps: Tensor) -> LossAt:
    """The objective on some prompts of a pack and its slopes by their log-probs."""
    rows = slice(*span.prompts)
    part = batch._replace(
        row=torch.where(batch.row[rows] >= 0, batch.row[rows] - span.responses[0], -1),
        **{name: getattr(batch, name)[rows] for name in TABLE},
    )
    with torch.enable_grad():
        logps = logps.detach().requires_grad_()
        total = loss(table(part, logps)).sum.sum()
        if not total.requires_grad:  # no response of these prompts pulls
            return LossAt(total, torch.zeros_like(logps))
        (slopes,) = torch.autograd.grad(total, logps, materialize_grads=True)
    return LossAt(total.detach(), slopes)


TABLE = ("reference_logps", "rewards", "given", "num_tokens", "source", "valid", "index")


def score_batch(
    model: nn.Module, batch: GroupBatch, *, backend: str = "sdpa", rows: int = 4096, room: Workspace | None = None
) -> Float[Tensor, " U"]:
    """Summed log-probs (nats) of the pack's U unique responses; the prompt is computed once."""
    return summed(per_token(model, batch, backend=backend, rows=rows, room=room), batch)


def per_token(
    model: nn.Module, batch: GroupBatch, *, backend: str, rows: int, room: Workspace | None = None
) -> Float[Tensor, " R"]:
    """Log-probs (nats) of every trained token, in the stream's order."""
    states = trained_states(model, batch, backend)
    return token_logps(states, Head.of(causal_lm(model)), batch.labels, rows=rows, room=room)


def trained_states(model: nn.Module, batch: GroupBatch, backend: str) -> Float[Tensor, "R D"]:
    """The last hidden states that predict trained tokens."""
    with packing():
        hidden = decoder(causal_lm(model))(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            pack=PackLayout.of(batch, backend),
        ).last_hidden_state[0]
    return hidden.index_select(0, batch.predict)


def rows_within(gib: float, model: nn.Module) -> int:
    """Trained tokens whose logits fit into so much memory, at least one."""
    weight = Head.of(causal_lm(model)).weight
    copies = (4 + 2 * weight.element_size()) if weight.element_size() < 4 else weight.element_size()
    return max(1, int(gib * 2**30 / (weight.shape[0] * copies)))


def summed(logps: Float[Tensor, " R"], batch: GroupBatch) -> Float[Tensor, " U"]:
    """Sum a response's tokens."""
    size = max(1, sum(not segment.is_prompt for segment in batch.segments))
    wide = torch.promote_types(torch.float32, logps.dtype)
    return torch.zeros(size, dtype=wide, device=logps.device).index_add(0, batch.owner, logps.to(wide))


def table(batch: GroupBatch, logps: Float[Tensor, " U"]) -> GroupScores:
    """The table that objectives read; copies of a response share its log-prob."""
    there = batch.row >= 0
    if not len(logps):
        logps = logps.new_zeros(1)
    return GroupScores(
        policy_logps=torch.where(there, logps[batch.row.clamp(min=0)], 0.0),
        reference_logps=batch.reference_logps.to(torch.promote_types(logps.dtype, torch.float32)),
        num_tokens=batch.num_tokens,
        rewards=batch.rewards,
        source=batch.source,
        given=batch.given,
        valid=batch.valid & there,
    )


def score_padded(model: nn.Module, batch: GroupBatch) -> Float[Tensor, " U"]:
    """The oracle: every response with its own prompt, padded, with transformers' masks and full logits."""
    ids, mask, trained = _padded(batch)
    logits = causal_lm(model)(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logps = logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)
    chosen = logps.gather(2, ids[:, 1:, None]).squeeze(2)  # cutting the last position off would cost a copy
    return torch.where(trained[:, 1:], chosen, 0.0).sum(dim=1)


def _padded(batch: GroupBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, which are trained), [U, longest] each; a row of nothing where there is no response."""
    rows = unpacked(batch)
    longest = max((len(ids) for ids, _ in rows), default=1)
    ids = torch.zeros(max(len(rows), 1), longest, dtype=torch.long, device=batch.input_ids.device)
    mask, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, (row, is_trained) in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
        trained[number, : len(row)] = is_trained
    mask[:, 0] = 1
    return ids, mask, trained


def unpacked(batch: GroupBatch) -> list[tuple[Tensor, Tensor]]:
    """(prompt + response ids, which of them are trained) of every unique response."""
    rows = []
    for segment in batch.segments:
        if not segment.is_prompt:
            ids = torch.cat([batch.input_ids[slice(*segment.prompt)], batch.input_ids[segment.start : segment.end]])
            rows.append((ids, torch.arange(len(ids), device=ids.device) >= len(ids) - segment.trained))
    return rows


def causal_lm(model: Any) -> Any:
    """The causal LM inside a LoRA wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(base: Any) -> nn.Module:
    """The stack below the head."""
    return base.get_decoder() if hasattr(base, "get_decoder") else base.base_model


def layers(base: Any) -> nn.ModuleList | None:
    """The decoder's layers, where they are a list as in transformers' models."""
    count = base.config.get_text_config().num_hidden_layers
    lists = (module for module in decoder(base).modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if len(found) == count), None)


@torch.no_grad()
def check_model(model: nn.Module, backend: str) -> None:
    """Packed and padded log-probs of a small probe must agree.

    Raises:
        FuserlError: they do not (the architecture keeps state across tokens, say): the model cannot be packed.
    """
    base = causal_lm(model)
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    batch = _probe(base.config.vocab_size, device)
    try:
        gap = float((score_batch(model, batch, backend=backend) - score_padded(model, batch)).abs().max())
    except FuserlError:
        raise
    except Exception as error:
        gap, why = float("nan"), f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    else:
        why = f"log-probs of 8 tokens differ by {gap:.1e} nats"
    allowed = 0.5 if dtype.itemsize < 4 or torch.is_autocast_enabled(device.type) else 1e-3
    if not gap <= allowed:
        raise FuserlError(
            f"this model cannot be packed with attention `{backend}` ({why})",
            where=f"architecture `{type(base).__name__}`",
            hint="use `trainer.packing=padded`, which works for every causal model",
        )


def _probe(vocabulary: int, device: torch.device) -> GroupBatch:
    """Two groups of two responses with four tokens each."""
    prompt, length, responses = 5, 4, 2
    size = prompt + responses * length
    group = torch.arange(2).repeat_interleave(size)
    branch = torch.cat([torch.zeros(prompt), *(torch.full((length,), b) for b in (1.0, 2.0))]).long().repeat(2)
    position = torch.cat([torch.arange(prompt), *(torch.arange(prompt, prompt + length) for _ in range(2))]).repeat(2)
    starts = torch.tensor([g * size + prompt + b * length for g in range(2) for b in range(responses)])
    predict = (starts[:, None] + torch.arange(length) - 1).clone()
    predict[:, 0] = torch.tensor([g * size + prompt - 1 for g in range(2) for _ in range(responses)])
    ids = (torch.arange(2 * size) * 31 + 7) % vocabulary
    labels = ids[(starts[:, None] + torch.arange(length)).flatten()]
    flat = torch.zeros(2, responses, dtype=torch.float64)
    segments = []
    for start in (0, size):
        span = (start, start + prompt)
        ends = [start + prompt + length * number for number in range(responses + 1)]
        segments.append(Segment(start, start + prompt, span))
        segments += [Segment(ends[b], ends[b + 1], span, length) for b in range(responses)]
    batch = GroupBatch(
        input_ids=ids, position_ids=position, group=group, branch=branch, predict=predict.flatten(), labels=labels,
        owner=torch.arange(4).repeat_interleave(length), row=torch.arange(4).view(2, 2), reference_logps=flat,
        rewards=flat, given=flat, num_tokens=torch.full((2, 2), length), source=torch.zeros(2, 2, dtype=torch.long),
        valid=torch.ones(2, 2, dtype=torch.bool), index=torch.arange(2), count_in_step=torch.tensor(2.0, dtype=torch.float64),
        progress=torch.tensor(0.0, dtype=torch.float64), segments=tuple(segments),
    )  # fmt: skip
    return batch.to(device)

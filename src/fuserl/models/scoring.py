"""Log-probs of a pack's responses: the fast way, the slow oracle beside it, and the check that they agree."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fuserl.errors import FuserlError
from fuserl.models.attention import packing
from fuserl.models.layout import PackLayout
from fuserl.models.logprobs import token_logps
from fuserl.objectives.terms import GroupScores
from fuserl.tokens.collate import GroupBatch


def score_batch(
    model: nn.Module, batch: GroupBatch, *, backend: str = "sdpa", chunk: int = 4096
) -> Float[Tensor, " U"]:
    """Summed log-probs (nats) of the pack's U unique responses; the prompt is computed once."""
    return summed(per_token(model, batch, backend=backend, chunk=chunk), batch)


def per_token(model: nn.Module, batch: GroupBatch, *, backend: str, chunk: int) -> Float[Tensor, " R"]:
    """Log-probs (nats) of every trained token, in the stream's order."""
    base = causal_lm(model)
    layout = PackLayout.from_batch(batch.group, batch.branch, batch.position_ids, backend)
    with packing():
        hidden = decoder(base)(
            input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], use_cache=False, pack=layout
        ).last_hidden_state[0]
    head = base.get_output_embeddings()
    return token_logps(
        hidden.index_select(0, batch.predict),
        head.weight,
        head.bias if isinstance(getattr(head, "bias", None), Tensor) else None,
        batch.labels,
        softcap=getattr(base.config, "final_logit_softcapping", None),
        scale=logit_scale(base.config),
        chunk=chunk,
    )


def summed(logps: Float[Tensor, " R"], batch: GroupBatch) -> Float[Tensor, " U"]:
    """Sum a response's tokens."""
    size = int(batch.row.max()) + 1
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
    base, rows = causal_lm(model), unpacked(batch)
    longest = max((len(ids) for ids, _ in rows), default=1)
    device = batch.input_ids.device
    ids = torch.zeros(max(len(rows), 1), longest, dtype=torch.long, device=device)
    mask, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, (row, is_trained) in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
        trained[number, : len(row)] = is_trained
    mask[:, 0] = 1
    logits = base(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logps = logits[:, :-1].to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)
    chosen = logps.gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.where(trained[:, 1:], chosen, 0.0).sum(dim=1)[: max(len(rows), 1)]


def unpacked(batch: GroupBatch) -> list[tuple[Tensor, Tensor]]:
    """(prompt + response ids, which of them are trained) of every unique response."""
    layout = PackLayout.from_batch(batch.group, batch.branch, batch.position_ids, "sdpa")
    num_trained = torch.bincount(batch.owner, minlength=int(batch.row.max()) + 1).tolist()
    rows = []
    for segment, count in zip((s for s in layout.segments if not s.is_prompt), num_trained, strict=True):
        ids = torch.cat([batch.input_ids[slice(*segment.prompt)], batch.input_ids[segment.start : segment.end]])
        rows.append((ids, torch.arange(len(ids), device=ids.device) >= len(ids) - count))
    return rows


def causal_lm(model: Any) -> Any:
    """The causal LM inside a LoRA wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(base: Any) -> nn.Module:
    """The stack below the head."""
    return base.get_decoder() if hasattr(base, "get_decoder") else base.base_model


def logit_scale(config: Any) -> float:
    """Cohere multiplies logits, Granite divides them."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


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
    allowed = 1e-8 if dtype == torch.float64 else 1e-3 if dtype == torch.float32 else 0.5
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
    batch = GroupBatch(
        input_ids=ids, position_ids=position, group=group, branch=branch, predict=predict.flatten(), labels=labels,
        owner=torch.arange(4).repeat_interleave(length), row=torch.arange(4).view(2, 2), reference_logps=flat,
        rewards=flat, given=flat, num_tokens=torch.full((2, 2), length), source=torch.zeros(2, 2, dtype=torch.long),
        valid=torch.ones(2, 2, dtype=torch.bool), index=torch.arange(2), count_in_step=torch.tensor(2.0, dtype=torch.float64),
        progress=torch.tensor(0.0, dtype=torch.float64),
    )  # fmt: skip
    return GroupBatch(*(column.to(device) for column in batch))

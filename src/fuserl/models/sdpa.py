"""Packs through torch's scaled dot-product attention, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fuserl.models.cpu_flash import PackAttention
from fuserl.models.layout import PackLayout, may_attend
from fuserl.models.pieces import Cascade, Masked, Padded, Piece, Triangle, gathered, keys_of, pieces_of
from fuserl.tokens.collate import Segment


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention with a boolean mask: [B, H, Q, D] by [B, KV, K, D], KV dividing H. Soft-capping by hand."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    key, value = (for_every_head(query, states) for states in (key, value))
    logits = softcap * torch.tanh(query @ key.transpose(-1, -2) * scaling / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(torch.float32, logits.dtype)).to(query.dtype) @ value


def dense_oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The whole [T, T] mask at once: slow, simple, right."""
    mask = may_attend(layout.group, layout.branch, layout.position)
    if window is not None:
        mask = mask & (layout.position[:, None] - layout.position[None, :] < window)
    return attend(query, key, value, mask.to(query.device)[None, None], scaling, softcap)


def attend_pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[1, H, T, D] by [1, KV, T, D] -> [1, H, T, D]."""
    if ("pieces", window) not in layout.derived:
        layout.derived["pieces", window] = list(pieces_of(layout, window))
    pieces = layout.derived["pieces", window]
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        key, value = (for_every_head(query, states) for states in (key, value))
        return PackAttention.apply(query, key, value, pieces, scaling)
    return _differentiable(query, key, value, pieces, scaling, softcap)


def for_every_head(query: Tensor, states: Tensor) -> Tensor:
    """Keys or values [1, H_kv, T, D], those of grouped queries repeated: [1, H, T, D]."""
    repeat = query.shape[1] // states.shape[1]
    return states if repeat == 1 else states.repeat_interleave(repeat, dim=1)


def _differentiable(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scaling: float, softcap: float | None
) -> Tensor:
    """The pieces by ordinary calls, put back into the stream's order."""
    parts: list[tuple[Tensor, Tensor]] = []

    def add(start: int, end: int, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        out = attend(query[:, :, start:end], keys, values, mask[None, None], scaling, softcap)
        parts.append((torch.arange(start, end, device=query.device), out[0]))

    def triangle(size: int, before: int = 0) -> Tensor:
        return torch.ones(size, before + size, dtype=torch.bool, device=query.device).tril(before)

    for piece in pieces:
        match piece:
            case Padded(index, inside, mask):
                rows, keys, values = (gathered(part, index) for part in (query, key, value))
                out = attend(rows, keys, values, mask, scaling, softcap)
                parts.append((index[inside], out.transpose(0, 1).flatten(1, 2)[:, inside.flatten()]))
            case Triangle(start, end):
                add(start, end, key[:, :, start:end], value[:, :, start:end], triangle(end - start))
            case Cascade(prompt, branches):
                for start, end in branches:
                    segment = Segment(start, end, prompt)
                    mask = triangle(end - start, prompt[1] - prompt[0])
                    add(start, end, keys_of(segment, key), keys_of(segment, value), mask)
            case Masked(segment, mask):
                add(segment.start, segment.end, keys_of(segment, key), keys_of(segment, value), mask)
    order = torch.cat([index for index, _ in parts])
    joined = torch.cat([out for _, out in parts], dim=1)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return joined.index_select(1, inverse)[None]

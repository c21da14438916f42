"""Packs on any device through torch's scaled dot-product attention; the cost is the attended area.

Short groups go together through one padded, masked call. Long ones take one causal call for the prompt and one for
every branch, whose mask is the causal triangle to the right of the prompt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuserl.models.layout import DENSE, PackLayout, Segment, may_attend


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention with a boolean mask: [B, H, Q, D] by [B, KV, K, D], KV dividing H. Soft-capping by hand."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
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
    parts: list[tuple[Tensor, Tensor]] = []
    if "short" not in layout.derived:
        layout.derived["short"] = _short_groups(layout)
    for index, inside in layout.derived["short"]:
        parts.append(_padded(query, key, value, layout, index, inside, scaling, window, softcap))
    for group in layout.groups():
        if group[-1].end - group[0].start > DENSE:
            parts += [_segment(query, key, value, layout, segment, scaling, window, softcap) for segment in group]
    order = torch.cat([index for index, _ in parts])
    joined = torch.cat([out for _, out in parts], dim=1)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return joined.index_select(1, inverse)[None]


def _short_groups(layout: PackLayout) -> list[tuple[Tensor, Tensor]]:
    """Batches of short groups of similar length: (stream indices [B, L], which of them are real [B, L])."""
    short = sorted(
        (group for group in layout.groups() if group[-1].end - group[0].start <= DENSE),
        key=lambda group: group[-1].end - group[0].start,
    )
    batches = []
    while short:
        longest = short[-1][-1].end - short[-1][0].start
        taken = [group for group in short if group[-1].end - group[0].start > longest // 2]
        short = short[: len(short) - len(taken)]
        starts = torch.tensor([group[0].start for group in taken])[:, None]
        lengths = torch.tensor([group[-1].end - group[0].start for group in taken])[:, None]
        steps = torch.arange(longest)[None]
        inside = steps < lengths
        index = torch.where(inside, starts + steps, starts)
        batches.append((index.to(layout.group.device), inside.to(layout.group.device)))
    return batches


def _padded(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, index: Tensor, inside: Tensor,
    scaling: float, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    mask_key = ("mask", index.data_ptr(), window)
    if mask_key not in layout.derived:
        branch, position = layout.branch[index], layout.position[index]
        mask = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        mask &= (position[:, None, :] <= position[:, :, None]) & inside[:, None, :]
        if window is not None:
            mask &= position[:, :, None] - position[:, None, :] < window
        layout.derived[mask_key] = mask[:, None]
    size, length = index.shape

    def gathered(states: Tensor) -> Tensor:
        return states[0].index_select(1, index.flatten()).unflatten(1, (size, length)).transpose(0, 1)

    out = attend(gathered(query), gathered(key), gathered(value), layout.derived[mask_key], scaling, softcap)
    return index[inside], out.transpose(0, 1).flatten(1, 2)[:, inside.flatten()]


def _segment(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, segment: Segment,
    scaling: float, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    own = slice(segment.start, segment.end)
    keys, values = key[:, :, own], value[:, :, own]
    positions = layout.position[own]
    key_positions = positions
    if not segment.is_prompt:
        prompt = slice(*segment.prompt)
        keys = torch.cat([key[:, :, prompt], keys], dim=2)
        values = torch.cat([value[:, :, prompt], values], dim=2)
        key_positions = torch.cat([layout.position[prompt], positions])
    mask = key_positions[None, :] <= positions[:, None]
    if window is not None:
        mask = mask & (positions[:, None] - key_positions[None, :] < window)
    out = attend(query[:, :, own], keys, values, mask[None, None], scaling, softcap)
    return torch.arange(segment.start, segment.end, device=query.device), out[0]

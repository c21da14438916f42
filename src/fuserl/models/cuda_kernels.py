"""Packs on CUDA: variable-length FlashAttention (torch's own or the package's) and compiled FlexAttention.

A segment is one variable-length row: its queries are its own tokens, its keys [prompt keys, own keys] gathered by
index. With causality aligned to the bottom right that is exactly the mask, and no query is computed twice.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.models.layout import PackLayout


class Rows(NamedTuple):
    """Variable-length rows of a pack."""

    cu_q: Tensor  # int32 [rows + 1]
    cu_k: Tensor
    max_q: int
    max_k: int
    keys: Tensor  # stream index of every row's keys, one row after the other


def rows_of(layout: PackLayout) -> Rows:
    """Derived once a pack."""
    if "rows" not in layout.derived:
        device = layout.group.device
        own = [(segment.start, segment.end) for segment in layout.segments]
        prompts = [None if segment.is_prompt else segment.prompt for segment in layout.segments]
        keys = [
            torch.cat([torch.arange(*span) for span in (prompt, mine) if span is not None])
            for prompt, mine in zip(prompts, own, strict=True)
        ]
        q_lengths = torch.tensor([end - start for start, end in own])
        k_lengths = torch.tensor([len(index) for index in keys])

        def cumulative(lengths: Tensor) -> Tensor:
            return torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(device, torch.int32)

        layout.derived["rows"] = Rows(
            cumulative(q_lengths),
            cumulative(k_lengths),
            int(q_lengths.max()),
            int(k_lengths.max()),
            torch.cat(keys).to(device),
        )
    return layout.derived["rows"]


def _flat(states: Tensor, index: Tensor | None = None) -> Tensor:
    """[1, H, T, D] -> [T, H, D], at `index`."""
    flat = states[0].transpose(0, 1)
    return flat.contiguous() if index is None else flat.index_select(0, index)


def torch_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """torch.nn.attention.varlen (FlashAttention inside torch)."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise FuserlError(
            "torch's varlen attention has no soft-capping", where="`trainer.attention`", hint="use flash_attn or flex"
        )
    rows = rows_of(layout)
    left = -1 if window is None else window - 1
    out = varlen_attn(
        _flat(query), _flat(key, rows.keys), _flat(value, rows.keys), rows.cu_q, rows.cu_k, rows.max_q, rows.max_k,
        scale=scaling, window_size=(left, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.transpose(0, 1)[None]


def flash_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The flash-attn package."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports] (an extra)

    rows = rows_of(layout)
    out = flash_attn_varlen_func(
        _flat(query), _flat(key, rows.keys), _flat(value, rows.keys), rows.cu_q, rows.cu_k, rows.max_q, rows.max_k,
        softmax_scale=scaling, causal=True, window_size=(-1 if window is None else window - 1, 0 if window else -1),
        softcap=softcap or 0.0,
    )  # fmt: skip
    return out.transpose(0, 1)[None]


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compiled FlexAttention over a block mask; lengths are padded to 128, where it is known to be sound."""
    import torch.nn.functional as F

    length = query.shape[2]
    padding = -length % 128
    query, key, value = (F.pad(states, (0, 0, 0, padding)) for states in (query, key, value))
    mask = _block_mask(layout, length + padding, window)

    cap = softcap or 1.0

    @no_type_check  # its signature is read by the compiler
    def capped(score, *_):
        return cap * torch.tanh(score / cap)

    out = _compiled_flex()(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        score_mod=capped if softcap else None,
    )  # fmt: skip
    return out[:, :, :length]


def _block_mask(layout: PackLayout, length: int, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if ("flex", window) not in layout.derived:
        padding = (0, length - len(layout.group))
        group = torch.nn.functional.pad(layout.group, padding, value=-1)
        branch, position = (torch.nn.functional.pad(column, padding) for column in (layout.branch, layout.position))

        @no_type_check  # its signature is read by the compiler
        def visible(_b, _h, i, j):
            seen = (group[i] == group[j]) & ((branch[i] == branch[j]) | (branch[j] == 0)) & (position[j] <= position[i])
            return seen if window is None else seen & (position[i] - position[j] < window)

        layout.derived["flex", window] = create_block_mask(visible, None, None, length, length, device=group.device)
    return layout.derived["flex", window]

"""A pack's pieces by torch's FlashAttention kernels on a processor, called as they are.

Keys are not copied and gradients land where they belong. The halves of a cascade are merged by their log-sum-exps; the
backward pass of each half needs the merged output alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuserl.models.pieces import Cascade, Masked, Padded, Piece, Triangle, gathered, keys_of

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class PackAttention(torch.autograd.Function):
    """[1, H, T, D] three times, the pieces, the scaling -> [1, H, T, D]."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scaling: float) -> Tensor:
        """Piece by piece into one output; the log-sum-exps [1, H, T] are kept for backward."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = out.new_empty(out.shape[:3], dtype=torch.promote_types(torch.float32, out.dtype))
        for piece in pieces:
            _forward(piece, query, key, value, out, sums, scaling)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.pieces, ctx.scaling = pieces, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of [1, H, T, D]: gradients of query, key and value, summed over the pieces that read them."""
        query, key, value, out, sums = ctx.saved_tensors
        grads = tuple(
            torch.zeros_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for states in (query, key, value)
        )
        for piece in ctx.pieces:
            _backward(piece, grad, (query, key, value), out, sums, ctx.scaling, grads)
        return *grads, None, None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, -torch.inf)


def _forward(
    piece: Piece, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, scaling: float
) -> None:
    """Fill a piece's part of `out` [1, H, T, D] and of the log-sum-exps [1, H, T]."""
    match piece:
        case Padded(index, inside, mask):
            states = [gathered(part, index) for part in (query, key, value)]
            mine, total = flash(*states, 0.0, False, attn_mask=_additive(mask, query), scale=scaling)
            where = index[inside]
            out[0].index_copy_(1, where, mine.transpose(0, 1).flatten(1, 2)[:, inside.flatten()])
            sums[0].index_copy_(1, where, total.transpose(0, 1).flatten(1, 2)[:, inside.flatten()])
        case Triangle(start, end):
            at = slice(start, end)
            out[:, :, at], sums[:, :, at] = flash(
                query[:, :, at], key[:, :, at], value[:, :, at], 0.0, True, scale=scaling
            )
        case Cascade(prompt, branches):
            for span in branches:
                _forward(Triangle(*span), query, key, value, out, sums, scaling)
            at, shared = slice(branches[0][0], branches[-1][1]), slice(*prompt)
            before, total = flash(query[:, :, at], key[:, :, shared], value[:, :, shared], 0.0, False, scale=scaling)
            merged = torch.logaddexp(total, sums[:, :, at])
            share = (total - merged).exp_()[..., None].to(out.dtype)
            out[:, :, at] += share * (before - out[:, :, at])
            sums[:, :, at] = merged
        case Masked(segment, mask):
            at = slice(segment.start, segment.end)
            out[:, :, at], sums[:, :, at] = flash(
                query[:, :, at], keys_of(segment, key), keys_of(segment, value), 0.0, False,
                attn_mask=_additive(mask, query)[None, None], scale=scaling,
            )  # fmt: skip


def _backward(
    piece: Piece,
    grad: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    sums: Tensor,
    scaling: float,
    grads: tuple[Tensor, ...],
) -> None:
    """Add a piece's part to the gradients of query, key and value, each [1, H, T, D]."""

    def add(at: slice, seen: slice, causal: bool) -> None:
        keys = [part[:, :, seen] for part in states[1:]]
        found = flash_backward(
            grad[:, :, at], states[0][:, :, at], *keys, out[:, :, at], sums[:, :, at], 0.0, causal, scale=scaling
        )
        for into, part, place in zip(grads, found, (at, seen, seen), strict=True):
            into[:, :, place] += part

    match piece:
        case Padded(index, inside, mask):
            upstream = gathered(grad, index) * inside[:, None, :, None]
            parts = [gathered(part, index) for part in (*states, out)]
            total = sums[0].index_select(1, index.flatten()).unflatten(1, tuple(index.shape)).transpose(0, 1)
            mine = flash_backward(upstream, *parts, total, 0.0, False, attn_mask=_additive(mask, grad), scale=scaling)
            where = index[inside]
            for into, part in zip(grads, mine, strict=True):
                into[0].index_copy_(1, where, part.transpose(0, 1).flatten(1, 2)[:, inside.flatten()])
        case Triangle(start, end):
            add(slice(start, end), slice(start, end), True)
        case Cascade(prompt, branches):
            for start, end in branches:
                add(slice(start, end), slice(start, end), True)
            add(slice(branches[0][0], branches[-1][1]), slice(*prompt), False)
        case Masked(segment, mask):
            at, shared = slice(segment.start, segment.end), slice(*segment.prompt)
            before = 0 if segment.is_prompt else shared.stop - shared.start
            found = flash_backward(
                grad[:, :, at], states[0][:, :, at], *(keys_of(segment, part) for part in states[1:]),
                out[:, :, at], sums[:, :, at], 0.0, False, attn_mask=_additive(mask, grad)[None, None], scale=scaling,
            )  # fmt: skip
            grads[0][:, :, at] += found[0]
            for into, part in zip(grads[1:], found[1:], strict=True):
                into[:, :, shared.start : shared.start + before] += part[:, :, :before]
                into[:, :, at] += part[:, :, before:]

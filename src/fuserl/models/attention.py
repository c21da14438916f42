"""Attention over packs, registered with transformers under the name `fuserl`: no model code is patched.

With a `pack` argument a kernel computes each segment's queries against its prompt's keys and its own. Without one
(generation, the padded oracle) the same name is ordinary causal attention with transformers' own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from fuserl.errors import FuserlError
from fuserl.models import cuda_kernels
from fuserl.models.layout import PackLayout
from fuserl.models.sdpa import attend, attend_pack

NAME = "fuserl"


@dataclass
class Windows:
    """Sliding windows that a forward asked for: in its masks, which packs do not use, and in its layers."""

    by_masks: set[object] = field(default_factory=set)
    by_layers: set[object] = field(default_factory=set)


_packing: ContextVar[Windows | None] = ContextVar("packing", default=None)

Kernel = Callable[..., Tensor]
KERNELS: dict[str, Kernel] = {
    "torch_varlen": cuda_kernels.torch_varlen,
    "flash_attn": cuda_kernels.flash_attn,
    "flex": cuda_kernels.flex,
    "sdpa": attend_pack,
}


@contextmanager
def packing() -> Iterator[None]:
    """Within it, models build no mask: the layout says who sees whom.

    Raises:
        FuserlError: the model asked for a window in its masks alone, which a pack would not honour.
    """
    seen = Windows()
    token = _packing.set(seen)
    try:
        yield
    finally:
        _packing.reset(token)
    if unseen := seen.by_masks - seen.by_layers - {None}:
        raise FuserlError(
            f"the model has a sliding window of {sorted(map(str, unseen))[0]} tokens in its mask only, so it cannot be packed",
            hint="use `trainer.packing=padded`",
        )


@torch.compiler.disable
def fuserl_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pack: PackLayout | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, H, T, D] in, [1, T, H, D] out."""
    if kwargs.get("s_aux") is not None:
        raise FuserlError(
            "the model's attention sinks are not supported",
            where=f"architecture of `{type(module).__name__}`",
            hint="use `trainer.packing=padded`",
        )
    if (seen := _packing.get()) is not None:
        seen.by_layers.add(sliding_window)
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if pack is None:
        out = attend(query, key, value, attention_mask, scaling, softcap)
    else:
        if torch.is_autocast_enabled(query.device.type):  # rotated queries come in fp32, values do not
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (states.to(dtype) for states in (query, key, value))
        asked = (query.dtype, query.shape[-1], value.shape[-1], sliding_window, softcap)
        pack.derived.setdefault("asked", set()).add(asked)
        out = KERNELS[pack.backend](query, key, value, pack, scaling, sliding_window, softcap)
    return out.transpose(1, 2).contiguous(), None


def fuserl_mask(*args: object, **kwargs: object) -> Tensor | None:
    """No mask for packs; an explicit boolean one otherwise."""
    if (seen := _packing.get()) is not None:
        seen.by_masks.add(kwargs.get("local_size"))
        return None
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})  # type: ignore[arg-type]


def register() -> None:
    """Make the name known to transformers. Idempotent."""
    AttentionInterface.register(NAME, fuserl_attention)
    AttentionMaskInterface.register(NAME, fuserl_mask)

"""Attention over packs, registered with transformers under the name `fuserl`: no model code is patched.

With a `pack` argument a kernel computes each segment's queries against its prompt's keys and its own. Without one
(generation, the padded oracle) the same name is ordinary causal attention with transformers' own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec

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


@dataclass(frozen=True)
class Availability:
    """Whether a kernel works here, and why not (or how exact it is)."""

    ok: bool
    why: str


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
            hint="train a model without attention sinks",
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


def choose(name: str, device: torch.device) -> str:
    """The kernel to use: a name, or `auto` for the first that works on the device.

    Raises:
        FuserlError: the named kernel does not work here.
    """
    if name == "auto":
        if device.type != "cuda":
            return "sdpa"
        return next(kernel for kernel, found in backends().items() if found.ok)
    if name not in KERNELS:
        raise FuserlError(
            f"there is no attention kernel `{name}`", where="`trainer.attention`", hint=f"auto, {', '.join(KERNELS)}"
        )
    found = backends()[name]
    if not found.ok or (name != "sdpa" and device.type != "cuda"):
        raise FuserlError(
            f"the attention kernel `{name}` does not work here: {found.why}",
            where="`trainer.attention`",
            hint="use `trainer.attention=auto`; `fuserl doctor` lists what works",
        )
    return name


@cache
def backends() -> dict[str, Availability]:
    """Every kernel in order of preference, each checked against the dense definition on this machine's device."""
    return {name: _availability(name) for name in KERNELS}


def _availability(name: str) -> Availability:
    if name == "sdpa":
        return _checked(name, torch.device("cpu"), torch.float64, 1e-12)
    if not torch.cuda.is_available():
        return Availability(False, "needs a CUDA device")
    if name == "flash_attn" and not find_spec("flash_attn"):
        return Availability(False, "not installed: pip install 'fuserl[flash]'")
    if name == "torch_varlen" and not find_spec("torch.nn.attention.varlen"):
        return Availability(False, "needs torch 2.11 or newer")
    return _checked(name, torch.device("cuda"), torch.bfloat16, 3e-2)


def _checked(name: str, device: torch.device, dtype: torch.dtype, tolerance: float) -> Availability:
    """Run the kernel on a small random pack and compare with the dense mask."""
    from fuserl.models.sdpa import dense_oracle

    try:
        generator = torch.Generator().manual_seed(0)
        group = torch.tensor([0] * 40 + [1] * 24)
        branch = torch.tensor([0] * 16 + [1] * 12 + [2] * 12 + [0] * 8 + [1] * 16)
        position = torch.tensor([*range(16), *range(16, 28), *range(16, 28), *range(8), *range(8, 24)])
        query, key, value = (
            torch.randn(1, heads, 64, 64, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)
        )
        layout = PackLayout.from_columns(*(column.to(device) for column in (group, branch, position)), backend=name)
        worst = 0.0
        for window in (None, 5):
            wanted = dense_oracle(query, key, value, layout, 0.125, window, None)
            moved = (tensor.to(device, dtype) for tensor in (query, key, value))
            got = KERNELS[name](*moved, layout, 0.125, window, None)
            worst = max(worst, float((got.cpu().double() - wanted).abs().max()))
    except Exception as error:  # whatever a kernel raises, it cannot be used
        return Availability(
            False, f"failed its check: {str(error).splitlines()[0][:100] if str(error) else type(error).__name__}"
        )
    if not worst <= tolerance:
        return Availability(False, f"differs from the dense mask by {worst:.1e}")
    return Availability(True, f"checked: differs from the dense mask by at most {worst:.1e}")

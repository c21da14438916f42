"""A policy from its configuration alone: shapes without memory, and an attention that keeps what the kernel keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from fuserl.errors import FuserlError
from fuserl.models import attention
from fuserl.models.layout import PackLayout
from fuserl.models.load import dtype_named, made_ready, model_config
from fuserl.models.sdpa import for_every_head
from fuserl.tokens.collate import Segment

NAME = "fuserl_weightless"


class _KeepsLikeAKernel(torch.autograd.Function):
    """Query, keys, values, output and log-sum-exps, as every fused kernel; where there is none, `area` scores a head as well."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, area: int) -> Tensor:
        """[1, H, T, D] of any values, and what a kernel would keep for backward."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = query.new_empty(query.shape[:3], dtype=torch.promote_types(torch.float32, query.dtype))
        scores = [
            query.new_empty(query.shape[1], area) for _ in range(2 * bool(area))
        ]  # capped ones, and their softmax
        ctx.save_for_backward(query, key, value, out, sums, *scores)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Shapes of the gradients of query, keys and values."""
        return *(torch.empty_like(states) for states in ctx.saved_tensors[:3]), None


def _stand_in(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pack: PackLayout | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface."""
    if (seen := attention._packing.get()) is not None:
        seen.by_layers.add(sliding_window)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (states.to(dtype) for states in (query, key, value))
    if pack is None or pack.backend == "sdpa":
        key, value = (for_every_head(query, states) for states in (key, value))
    elif pack.backend != "flex":  # keys are gathered, a prompt's once for each of its responses
        index = _gathered(pack)
        key, value = (states.index_select(2, index) for states in (key, value))
    area = 0
    if softcap is not None and pack is not None and pack.backend == "sdpa":  # capped by hand, a segment at a time
        key, value = (states.index_select(2, _gathered(pack)) for states in (key, value))
        area = sum((s.end - s.start) * (s.end - s.start + _before(s)) for s in pack.segments)
    return _KeepsLikeAKernel.apply(query, key, value, area).transpose(1, 2).contiguous(), None


def _before(segment: Segment) -> int:
    """Tokens of the prompt that a branch sees."""
    return 0 if segment.is_prompt else segment.prompt[1] - segment.prompt[0]


def _gathered(pack: PackLayout) -> Tensor:
    if "gathered" not in pack.derived:
        size = sum(s.end - s.start + _before(s) for s in pack.segments)
        pack.derived["gathered"] = torch.empty(size, dtype=torch.long)
    return pack.derived["gathered"]


def weightless(
    path: str, *, dtype: str, lora: dict[str, Any] | None, checkpointing: str, packing: str, revision: str | None
) -> Any:
    """The policy that `load_policy` would give: the same modules, whose parameters take no memory.

    Raises:
        FuserlError: there is no configuration, or LoRA, checkpointing or packing do not suit the model.
    """
    attention.register()
    AttentionInterface.register(NAME, _stand_in)
    AttentionMaskInterface.register(NAME, attention.fuserl_mask)
    config = model_config(path, revision=revision)
    with torch.device("meta"):
        model = _shaped(config, dtype_named(dtype, config), path)
        model = made_ready(model, lora=lora, checkpointing=checkpointing, packing=packing)
    for module in model.modules():
        if getattr(getattr(module, "config", None), "_attn_implementation", None) == attention.NAME:
            module.config._attn_implementation = NAME
    _to_the_processor(model)
    return model


def _shaped(config: Any, dtype: torch.dtype, path: str) -> Any:
    """Raises: FuserlError: no model has these settings."""
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (RuntimeError, TypeError, ValueError, ArithmeticError, KeyError, AttributeError) as error:
        raise FuserlError(
            f"`config.json` describes no model ({str(error).splitlines()[0] if str(error) else error!r})",
            where=f"`target.path={path}`",
            hint="copy the folder again from where the model comes from",
        ) from error


def _to_the_processor(model: nn.Module) -> None:
    """From the meta device, which knows neither autocast nor the head's memory, to fake tensors; shared ones stay so."""
    new: dict[int, Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, old in held.items():
                    if old is None:
                        continue
                    if id(old) not in new:
                        empty = torch.empty(old.shape, dtype=old.dtype)
                        is_weight = isinstance(old, nn.Parameter)
                        new[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad) if is_weight else empty
                    held[name] = new[id(old)]  # type: ignore[assignment]

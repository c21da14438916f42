"""Activation checkpointing: what backward recomputes instead of keeping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from fuserl.errors import FuserlError

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._scaled_mm}
ATTENTION = ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_varlen_attn", "flash_attn")


def _keep_products(context: Any, op: Any, *args: object, **kwargs: object) -> CheckpointPolicy:
    """Keep what is dear to compute; norms, activations, rotations and copies are cheap."""
    packet = getattr(op, "overloadpacket", op)
    dear = packet in PRODUCTS or any(part in str(op) for part in ATTENTION)
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


WAYS: dict[str, Callable[[], dict[str, Any]] | None] = {
    "none": None,
    "full": lambda: {},
    "selective": lambda: {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)},
}


def checkpoint_activations(model: Any, way: str) -> None:
    """Make a transformers model recompute activations of its layers in backward.

    Args:
        way: `none`; `full`, which keeps each layer's input alone; `selective`, which keeps matrix products and attention
            besides and recomputes the rest.

    Raises:
        FuserlError: there is no such way, or the model cannot.
    """
    if way not in WAYS:
        raise FuserlError(
            f"there is no activation checkpointing `{way}`", where="`target.checkpointing`", hint=", ".join(WAYS)
        )
    if not (options := WAYS[way]):
        return
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **options()})
    except ValueError as error:
        raise FuserlError(
            f"the model cannot recompute its activations ({error})",
            where=f"architecture `{type(model).__name__}`",
            hint="use `target.checkpointing=none`",
        ) from error

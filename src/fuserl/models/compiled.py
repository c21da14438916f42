"""`torch.compile` of decoder layers, one at a time and for any length: packs of other lengths compile nothing anew."""

from __future__ import annotations

from typing import Any

from fuserl.errors import FuserlError
from fuserl.models.scoring import causal_lm, layers


def compile_layers(model: Any) -> None:
    """Compile every decoder layer in place; names in the state dict stay as they are.

    All layers share their code, so a handful of graphs serves them all. Attention over packs stays outside the graphs:
    what it does depends on the pack.

    Raises:
        FuserlError: the model's layers are not where they are in transformers' decoders, or they recompute their
            activations, within which the compiler gives up without a word.
    """
    base = causal_lm(model)
    if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise FuserlError(
            "layers that recompute their activations would run uncompiled",
            where="`trainer.compile` and `target.checkpointing`",
            hint="use `target.checkpointing=none` or `trainer.compile=false`",
        )
    found = layers(base)
    if found is None:
        raise FuserlError(
            "no list of decoder layers was found to compile",
            where=f"architecture `{type(base).__name__}`",
            hint="use `trainer.compile=false`",
        )
    for layer in found:
        layer.compile(dynamic=True)

"""`model/` of a policy that is cut up: one weight after the other is put together, merged and written, then read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from fuserl.models.scoring import causal_lm
from fuserl.models.sharding import full, trained_weights, whole
from fuserl.training.export import finished, require_the_same

SHARD = "5GB"  # of a file, as transformers writes them


def goes_in_pieces(policy: Any) -> bool:
    """Whether a model is on disk as it is in memory, its adapters aside, and those are sums."""
    base = causal_lm(policy)
    layers = [module for module in base.modules() if isinstance(module, LoraLayer)]
    sums = all(not layer.lora_variant and not any(layer.lora_bias.values()) for layer in layers)
    names = {base.config.model_type, *(_class_of(module) for module in base.modules())}
    renamed = any(get_checkpoint_conversion_mapping(name) for name in names)
    return sums and not renamed and all(isinstance(weight, DTensor) for weight in policy.parameters())


def _class_of(module: Any) -> str:
    """The name that it had before it was cut up."""
    return type(module).__name__.removeprefix("FSDP")


class _Part(NamedTuple):
    weight: Tensor
    layer: Any  # that has adapters on it, or None


def parts_of(base: Any) -> dict[str, _Part]:
    """What a folder of the merged model holds, by name; tied weights once."""
    modules = dict(base.named_modules())
    found: dict[str, _Part] = {}
    seen: set[int] = set()
    for name, weight in base.state_dict(keep_vars=True).items():
        if ".lora_" in name or ".original_module." in name or id(weight) in seen:
            continue
        seen.add(id(weight))
        layer, is_below, _ = name.partition(".base_layer.weight")
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        found[plain] = _Part(weight, modules[layer] if is_below else None)
    return found


def merged(part: _Part) -> Tensor:
    """Put together, with what its adapters add. All processes call it."""
    together = full(part.weight.detach())
    for adapter in part.layer.active_adapters if part.layer else ():
        together = together + full(part.layer.get_delta_weight(adapter)).to(together.dtype)
    return together


@torch.no_grad()
def export_in_pieces(
    policy: Any, tokenizer: Any, folder: Path, *, card: str, first: bool, load: Callable[[Path], Any]
) -> None:
    """See `export_model`; all processes call it, and none holds more than a file's weights.

    Args:
        first: whether this process is the one that writes.
        load: reads a folder in pieces.

    Raises:
        FuserlError: the written model does not give the logits of the one in memory.
    """
    part, adapter = folder.with_name(folder.name + ".part"), folder.with_name("adapter")
    base = causal_lm(policy)
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    if base is not policy:
        adapters = trained_weights(policy, keep=first)
        if first:
            policy.save_pretrained(adapter, safe_serialization=True, state_dict=adapters)
            tokenizer.save_pretrained(adapter)
    _write_weights(parts_of(base), part, first)
    if first:
        _write_config(base, part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(card, encoding="utf-8")
    torch.distributed.barrier()
    require_the_same(_logits(load(part)), _logits(policy), next(base.parameters()).dtype, part)
    torch.distributed.barrier()
    if first:
        finished(part, folder)


def _write_weights(parts: dict[str, _Part], folder: Path, first: bool) -> None:
    shapes = {
        name: torch.empty(part.weight.shape, dtype=part.weight.dtype, device="meta") for name, part in parts.items()
    }
    files = split_torch_state_dict_into_shards(
        shapes, max_shard_size=SHARD, filename_pattern="model{suffix}.safetensors"
    )
    for file, names in files.filename_to_tensors.items():
        held = {}
        for name in names:
            together = merged(parts[name])
            if first:
                held[name] = together.cpu().contiguous()
            del together
        if first:
            save_file(held, folder / file, metadata={"format": "pt"})
    if first and files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(base: Any, folder: Path) -> None:
    """As `save_pretrained` does."""
    base.config.architectures = [_class_of(base)]
    base.config.dtype = base.dtype
    base.config.save_pretrained(folder)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)


def _logits(model: Any) -> Tensor:
    """Of a fixed row of tokens."""
    base, was_training = causal_lm(model), model.training
    probe = torch.arange(16, device=next(model.parameters()).device)[None] * 7 % base.config.vocab_size
    model.eval()
    found = whole(model, lambda: base(probe).logits)
    model.train(was_training)
    return found

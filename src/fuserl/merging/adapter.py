"""An expert that is a LoRA adapter: its base's tensors, with `scale · B A` added where it has them, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.merging.checkpoint import INDEX, NOT_SAFE, SINGLE, Checkpoint, Place, headers, read_json, read_tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
HARMLESS = ("gaussian", "orthogonal", "eva")  # ways to begin an adapter that leave the base alone
OTHERS = (  # settings with which an update is something else than `scale · B A`
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "layer_replication", "arrow_config",
    "target_parameters", "trainable_token_indices", "monteclora_config",
)  # fmt: skip
WAY_OUT = "merge it with peft (`merge_and_unload`, `save_pretrained`) and give the folder that this writes"


class Adapted:
    """A base with an adapter over it.

    Args:
        folder: of the adapter.
        open_base: finds the base by the name that the adapter gives it.

    Raises:
        FuserlError: it is another kind of adapter, its weights are not safe, or they do not fit the base.
    """

    def __init__(self, folder: Path, label: str, open_base: Callable[[str], Checkpoint]) -> None:
        self.folder, self.label = folder, label
        self.settings = read_json(folder / CONFIG)
        _require_plain(self.settings, folder)
        if not (folder / WEIGHTS).exists():
            raise FuserlError(
                f"the adapter has no `{WEIGHTS}`",
                where=str(folder),
                hint=f"save it with safe_serialization=True; {NOT_SAFE}",
            )
        self.base = open_base(str(self.settings.get("base_model_name_or_path")))
        self.config = self.base.config
        self.own = headers([folder / WEIGHTS])
        self.changed, self.replaced = self._places_in_base()
        self.places = {
            name: Place(place.file, place.shape, torch.promote_types(place.dtype, torch.float32))
            if name in self.changed
            else place
            for name, place in self.base.places.items()
        }

    def read(self, name: str) -> Tensor:
        """In float32 where the adapter has a part: rounding `B A` to the base's dtype would lose most of it."""
        if name in self.replaced:
            return read_tensor(self.folder / WEIGHTS, self.replaced[name])
        weight = self.base.read(name)
        if name not in self.changed:
            return weight
        module = self.changed[name]
        a, b = (read_tensor(self.folder / WEIGHTS, module + end).float() for end in (A, B))
        delta = b @ a
        if self.settings.get("fan_in_fan_out"):
            delta = delta.T
        return weight.to(self.places[name].dtype) + delta.mul_(self._scale(module.removeprefix(PREFIX), len(a)))

    def files(self) -> list[Path]:
        """The adapter's and its base's."""
        return [self.folder / CONFIG, self.folder / WEIGHTS, *self.base.files()]

    def _scale(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / √rank where the adapter is rank-stabilised."""
        from peft.utils.other import get_pattern_key  # slow to import, and few merges have adapters

        patterns = self.settings.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), module), self.settings.get("lora_alpha", 8))
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _places_in_base(self) -> tuple[dict[str, str], dict[str, str]]:
        """Tensors that a product is added to -> their module in the adapter; those that it replaces -> their key there."""
        changed, replaced = {}, {}
        for key, place in self.own.items():
            module = key.removesuffix(A).removesuffix(B)
            name = module.removeprefix(PREFIX) + (".weight" if module != key else "")
            there = self.base.places.get(name)
            if there is None:
                raise FuserlError(
                    f"the adapter's `{key}` belongs to nothing in its base", where=str(self.folder), hint=WAY_OUT
                )
            if module != key:
                self._require_shape(module, there)
                changed[name] = module
            elif place.shape == there.shape:
                replaced[name] = key
            else:
                raise _unfit(key, place.shape, there.shape, self.folder)
        return changed, replaced

    def _require_shape(self, module: str, there: Place) -> None:
        a, b = self.own.get(module + A), self.own.get(module + B)
        if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise FuserlError(f"`{module}` is no product of two matrices", where=str(self.folder), hint=WAY_OUT)
        shape = (b.shape[0], a.shape[1])
        if (shape[::-1] if self.settings.get("fan_in_fan_out") else shape) != there.shape:
            raise _unfit(module, shape, there.shape, self.folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).exists() and not any((folder / name).exists() for name in (INDEX, SINGLE))


def _require_plain(settings: dict[str, Any], folder: Path) -> None:
    """Raises: FuserlError: its update is not `scale · B A`."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise FuserlError(f"the adapter is {kind}, not LoRA", where=str(folder), hint=WAY_OUT)
    init = settings.get("init_lora_weights", True)
    if init not in (*HARMLESS, True, False, None):
        raise FuserlError(
            f"the adapter was begun by `{init}`, which changes the base's weights as well",
            where=str(folder),
            hint=WAY_OUT,
        )
    if used := [name for name in OTHERS if settings.get(name)]:
        raise FuserlError(
            f"the adapter uses `{used[0]}`, which plain LoRA does not have", where=str(folder), hint=WAY_OUT
        )


def _unfit(what: str, shape: tuple[int, ...], there: tuple[int, ...], folder: Path) -> FuserlError:
    return FuserlError(
        f"the adapter's `{what}` makes {list(shape)}, its base has {list(there)} there",
        where=str(folder),
        hint="this adapter belongs to another base: see `base_model_name_or_path` in its adapter_config.json",
    )

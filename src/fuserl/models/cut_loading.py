"""Loading a policy in pieces: no process ever holds more of it whole than one layer, or what is in no layer.

Every process makes the model without memory, reads a layer's weights from the files when its turn comes, and keeps its
share. Where files do not hold a model weight by weight (adapters to be merged, experts to be stacked), the first process
loads it into main memory and sends one weight after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig

from fuserl.errors import FuserlError
from fuserl.models import attention
from fuserl.models.load import dtype_named, load_policy, made_ready, model_config, not_loadable
from fuserl.models.reference import plain_name
from fuserl.models.scoring import causal_lm
from fuserl.models.sharding import shard

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DRAWN = (True, "gaussian", "orthogonal")  # LoRA's initialisations that do not look at the weights below

# A weight or buffer, whole and in main memory, by its name and as the model has made it: hollow, or with a value of its
# own. All processes ask for the same ones in the same order.
Get = Callable[[str, Tensor], Tensor]


def load_cut_up(
    path: str,
    mesh: DeviceMesh,
    *,
    device: torch.device,
    gather: torch.dtype | None = None,
    dtype: str = "auto",
    lora: dict[str, Any] | None = None,
    checkpointing: str = "none",
    packing: str = "shared",
    revision: str | None = None,
) -> Any:
    """What `load_policy` gives, cut up over a mesh as `shard` does it. All processes call it.

    Raises:
        FuserlError: see `load_policy` and `shard`.
    """
    attention.register()
    config = model_config(path, revision=revision)
    model = hollow(config, dtype_named(dtype, config))
    files = None
    if (lora or {}).get("init_lora_weights", True) in DRAWN and (dtype != "auto" or config.dtype is not None):
        with suppress(OSError, SafetensorError, ValueError, KeyError):  # told by transformers, then
            files = Files.of(snapshot(path, revision), model)
    alike = torch.tensor(int(files is not None))
    torch.distributed.all_reduce(alike, torch.distributed.ReduceOp.MIN)
    get: Get
    if files is not None and alike:
        get = files.get
        model = made_ready(model, lora=lora, checkpointing=checkpointing, packing=packing)
    else:
        whole = partial(load_policy, path, dtype=dtype, lora=lora, packing=packing, revision=revision)
        sent = FromTheFirst(whole)
        get, model = sent.get, hollow(config, sent.dtype)
        drawn = lora and lora | {"init_lora_weights": True}  # to be overwritten
        model = made_ready(model, lora=drawn, checkpointing=checkpointing, packing=packing)
    with suppress(OSError, FuserlError):
        causal_lm(model).generation_config = GenerationConfig.from_pretrained(snapshot(path, revision))
    shard(model, mesh, gather, ready=partial(_fill, get=get, device=device))
    return model


def snapshot(path: str, revision: str | None) -> Path:
    """The folder of a model: as it is, or of the hub's files on this machine.

    Raises:
        FuserlError: there is none.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=["*.json", "model*.safetensors"]))
    except Exception as error:
        raise not_loadable("model", path, error) from error


def hollow(config: Any, dtype: torch.dtype) -> Any:
    """A causal LM whose buffers are real and whose weights have a shape and no memory: all numbers are one number.

    They lie on the processor, so that what is built on top of them (adapters) is real.
    """
    with _weights_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    known: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if weight not in known:
                    empty = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
                    known[weight] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                module._parameters[name] = known[weight]
    return model


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Weights of modules that are made inside it take no memory; buffers do."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None and not weight.is_meta:
            weight = nn.Parameter(weight.to("meta"), requires_grad=weight.requires_grad)
        register(module, name, weight)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


class Files:
    """Safetensors that hold a model weight by weight, under its own names."""

    def __init__(self, places: dict[str, Path]) -> None:
        self.places = places
        self.files = {path: safe_open(path, framework="pt") for path in set(places.values())}

    @classmethod
    def of(cls, folder: Path, model: Any) -> Files | None:
        """None where a weight is missing, of another shape, tied to one that is there as well, or must stay in fp32."""
        places = _places(folder)
        if places is None:
            return None
        files = cls(places)
        seen: dict[int, str] = {}
        for name, weight in model.state_dict(keep_vars=True).items():
            first = seen.setdefault(id(weight), name)
            if (first == name) != (name in places):
                return None
            if first == name and tuple(files._slice(name).get_shape()) != tuple(weight.shape):
                return None
        kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
        return None if kept and model.dtype.itemsize < 4 else files

    def _slice(self, name: str) -> Any:
        return self.files[self.places[name]].get_slice(name)

    def get(self, name: str, made: Tensor) -> Tensor:
        """See `Get`: the file is mapped, not read."""
        plain = plain_name(name).replace(".modules_to_save.default", "")
        if plain not in self.places:  # an adapter, or a buffer that no checkpoint holds
            return made
        return self.files[self.places[plain]].get_tensor(plain).to(made.dtype)


def _places(folder: Path) -> dict[str, Path] | None:
    """The file of every tensor of a model's folder; None where it is no such folder."""
    if (folder / "adapter_config.json").exists():
        return None
    if (folder / SINGLE).exists():
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    if not (folder / INDEX).exists():
        return None
    held = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return {name: folder / Path(file).name for name, file in held.items()}


class FromTheFirst:
    """The first process has the whole model in main memory, the others are sent it."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.first = torch.distributed.get_rank() == 0
        model = causal_lm(load()) if self.first else None
        self.held = dict([*model.named_parameters(), *model.named_buffers()]) if model is not None else {}
        kinds = [{name: (tuple(part.shape), part.dtype) for name, part in self.held.items()}]
        torch.distributed.broadcast_object_list(kinds)
        self.kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = kinds[0]
        self.dtype = next(iter(self.kinds.values()))[1]

    def get(self, name: str, made: Tensor) -> Tensor:
        """See `Get`."""
        if name not in self.kinds:  # tied to one that was sent
            return made
        part = self.held[name].detach().contiguous() if self.first else self._room(name)
        torch.distributed.broadcast(part, src=0)
        return part

    def _room(self, name: str) -> Tensor:
        shape, dtype = self.kinds[name]
        return torch.empty(shape, dtype=dtype)


def _fill(module: nn.Module, prefix: str, *, get: Get, device: torch.device) -> None:
    """Weights that are not cut up yet and all buffers; tied ones stay tied."""
    done: dict[nn.Parameter, nn.Parameter] = {}
    for path, part in module.named_modules(prefix=prefix):
        at = f"{path}." if path else ""
        for name, weight in part._parameters.items():
            if weight is None or isinstance(weight, DTensor):
                continue
            if weight not in done:
                value = get(at + name, weight.detach()).to(device)
                done[weight] = nn.Parameter(value, requires_grad=weight.requires_grad)
            part._parameters[name] = done[weight]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = get(at + name, buffer).to(device)

"""Checkpoints in pieces: every process writes its share as safetensors (torch's DCP), any number of them reads it.

A checkpoint is a folder of `shard-*.safetensors`, weights and optimiser states by name, and `rest.pt`, which is read
with `weights_only`: nothing in it can run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from fuserl.errors import FuserlError
from fuserl.records.manifest import crc32

REST = "rest.pt"
SUMS = ".sums.json"  # of a process's pieces, by file


def write(folder: Path, tensors: dict[str, Tensor], rest: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Whole or absent: beside the target, flushed to the disk, renamed. All processes of the group call it.

    Args:
        rest: of this process; the first one's is kept.
        group: used by nothing else meanwhile; of main memory.
    """
    part, rank = folder.with_suffix(".part"), dist.get_rank(group)
    if rank == 0:
        for halved in folder.parent.glob(f"*{part.suffix}"):  # by a kill
            shutil.rmtree(halved) if halved.is_dir() else halved.unlink()
        part.mkdir(parents=True)
    dist.barrier(group)
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True), process_group=group)
    mine = {file.name: crc32(file) for file in part.glob(f"shard-{rank + 1:05d}-*.safetensors")}
    (part / f"shard-{rank + 1:05d}{SUMS}").write_text(json.dumps(mine), encoding="utf-8")
    dist.barrier(group)
    if rank == 0:
        with (part / REST).open("wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        _flush(part)
        part.rename(folder)
        _flush(folder.parent)
    dist.barrier(group)


def _flush(folder: Path) -> None:
    """Names of files reach the disk."""
    at = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def read(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill these tensors, each process its share; gives the rest. All processes call it."""
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def _require_ours(folder: Path) -> None:
    if not (folder / REST).is_file():
        raise FuserlError(
            f"the checkpoint has no `{REST}`",
            where=str(folder),
            hint="DeepSpeed's are read by DeepSpeed alone: go on with the strategy that has written it, or delete it",
        )


def put_together(folder: Path) -> dict[str, Any]:
    """A checkpoint in pieces as Lightning would have written it in one process.

    Raises:
        FuserlError: the folder is another program's.
    """
    _require_ours(folder)
    reader = HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in known.items()}  # type: ignore[union-attr]
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    found = torch.load(folder / REST, map_location="cpu", weights_only=True)
    groups, aliases = found.pop("optimizer_groups"), found.pop("aliases")
    places = {name: at for at, name in enumerate(name for group in groups for name in group["names"])}
    state: dict[int, dict[str, Tensor]] = {at: {} for at in places.values()}
    weights = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "weights":
            weights[rest] = tensor
        else:
            key, _, weight = rest.partition("/")
            state[places[weight]][key] = tensor
    weights |= {alias: weights[name] for alias, name in aliases.items()}
    numbered = [
        {key: value for key, value in group.items() if key != "names"}
        | {"params": [places[name] for name in group["names"]]}
        for group in groups
    ]
    return found | {"state_dict": weights, "optimizer_states": [{"state": state, "param_groups": numbered}]}


class Pieces:
    """A module's trained weights and its optimiser's states, as a checkpoint names them."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
        self.names = {id(weight): name for name, weight in module.named_parameters()}

    def weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """(tensors by name, further names of tied weights)."""
        first: dict[int, str] = {}
        found, aliases = {}, {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if name in self.frozen:
                continue
            known = first.setdefault(id(tensor), name)
            if known == name:
                found[name] = tensor.detach()
            else:
                aliases[name] = known
        return found, aliases

    def states(self) -> dict[str, Tensor]:
        """Of the optimiser: `optimizer/KEY/WEIGHT`."""
        return {
            f"optimizer/{key}/{self.names[id(weight)]}": value
            for weight in self._optimized()
            for key, value in self.optimizer.state[weight].items()
        }

    def all(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `write` takes: tensors by name, and what belongs to the rest."""
        weights, aliases = self.weights()
        tensors = {f"weights/{name}": tensor for name, tensor in weights.items()} | self.states()
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            | {"names": [self.names[id(weight)] for weight in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        return tensors, {"optimizer_groups": groups, "aliases": aliases}

    @torch.no_grad()
    def read(self, folder: Path) -> dict[str, Any]:
        """Restore weights and states from pieces; gives the rest.

        Raises:
            FuserlError: the folder is another program's.
        """
        _require_ours(folder)
        known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        weights, _ = self.weights()
        wanted = {f"weights/{name}": tensor for name, tensor in weights.items()}
        named = {name: weight for weight in self._optimized() for name in [self.names[id(weight)]]}
        for name, found in known.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, weight = rest.partition("/")
                wanted[name] = self._room(named[weight], key, tuple(found.size))  # type: ignore[union-attr]
        rest = read(folder, wanted)
        for group, saved in zip(self.optimizer.param_groups, rest.pop("optimizer_groups"), strict=True):
            group.update({key: value for key, value in saved.items() if key != "names"})
        rest.pop("aliases")
        return rest

    @torch.no_grad()
    def take(self, whole: dict[str, Any]) -> dict[str, Any]:
        """Restore from a checkpoint that was written in one piece; gives the rest."""
        weights, _ = self.weights()
        for name, tensor in weights.items():
            _cut_into(tensor, whole["state_dict"][name])
        (optimizer,) = whole["optimizer_states"]
        for at, weight in enumerate(self._optimized()):
            for key, value in optimizer["state"].get(at, {}).items():
                _cut_into(self._room(weight, key, tuple(value.shape)), value)
        for group, saved in zip(self.optimizer.param_groups, optimizer["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        return {key: value for key, value in whole.items() if key not in ("state_dict", "optimizer_states")}

    def _optimized(self) -> Iterator[Tensor]:
        return (weight for group in self.optimizer.param_groups for weight in group["params"])

    def _room(self, weight: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
        """An optimiser's state, empty: cut up as the weight is, or a number."""
        same = shape == tuple(weight.shape)
        device = weight.device if self.optimizer.defaults.get("fused") else "cpu"
        room = torch.zeros_like(weight) if same else torch.zeros(shape, device=device)
        self.optimizer.state[weight][key] = room
        return room


def _cut_into(target: Tensor, value: Tensor) -> None:
    """Each process takes its share; all have the whole value."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
        target = target.to_local()
    target.copy_(value)

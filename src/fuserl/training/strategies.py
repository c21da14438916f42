"""How processes share a model: `conf/trainer` picks one of these functions, each gives keywords of Lightning's trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, get_args

import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fuserl.errors import FuserlError
from fuserl.training.checkpoints import AtomicCheckpointIO, Writer
from fuserl.training.sharded import ShardedStrategy
from fuserl.training.zero import AsElsewhere, Precision, WholeDeepSpeed, settings

OF_A_RANK = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where a run takes place."""

    devices: int  # processes of one machine
    nodes: int  # machines
    accelerator: str
    precision: str  # Lightning's name
    packing: str
    compile: bool
    patience: timedelta  # that processes have with each other

    @classmethod
    def of(cls, cfg: DictConfig) -> Place:
        """Of a run's settings."""
        trainer = cfg.trainer
        return cls(
            trainer.devices,
            trainer.nodes,
            trainer.accelerator,
            trainer.precision,
            trainer.packing,
            trainer.compile,
            timedelta(seconds=trainer.timeout),
        )

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def cuts_up(cfg: DictConfig) -> bool:
    """Whether each process holds a share of weights, gradients and moments alone, as `fsdp2` has it."""
    return cfg.trainer.strategy["_target_"] == f"{__name__}.{fsdp2.__name__}"


def keywords(cfg: DictConfig, writer: Writer) -> dict[str, Any]:
    """What `trainer.strategy` asks of Lightning's trainer, and the place beside it; `writer` writes checkpoints."""
    place = Place.of(cfg)
    chosen: dict[str, Any] = instantiate(cfg.trainer.strategy)(place, writer)
    return {"accelerator": place.accelerator, "devices": place.devices, "num_nodes": place.nodes, **chosen}


def started_on_each(place: Place) -> FuserlError:
    """One process cannot start others on other machines."""
    return FuserlError(
        f"a run over {place.nodes} machines is started on each of them",
        where="`trainer.nodes`",
        hint=f"there: torchrun --nnodes={place.nodes} --nproc-per-node={place.devices} --rdzv-backend=c10d "
        "--rdzv-endpoint=FIRST_MACHINE:29500 -m fuserl.training.worker, and the same settings as here; see docs/scale.md",
    )


def automatic(place: Place, writer: Writer) -> dict[str, Any]:
    """One process alone; more of them as `ddp`."""
    if place.ranks > 1:
        return ddp(place, writer)
    return {"strategy": "auto", "precision": place.precision, "plugins": [AtomicCheckpointIO(writer)]}


def ddp(place: Place, writer: Writer) -> dict[str, Any]:
    """Every process holds everything; gradients are averaged while backward still runs."""
    return {
        "strategy": DDPStrategy(timeout=place.patience),
        "precision": place.precision,
        "plugins": [AtomicCheckpointIO(writer)],
    }


def fsdp2(place: Place, writer: Writer, *, gather: str | None) -> dict[str, Any]:
    """Every process holds a share of weights, gradients and moments; a layer is gathered while it computes.

    Args:
        gather: the dtype in which weights travel and compute; None: their own.

    Raises:
        FuserlError: there is no such dtype, or layers are to be compiled as well.
    """
    if place.compile:
        raise FuserlError(
            "layers that are cut up are not compiled",
            where="`trainer.compile`",
            hint="use `trainer.compile=false`, or `trainer=ddp`",
        )
    dtype = getattr(torch, gather, None) if gather else None
    if gather and not isinstance(dtype, torch.dtype):
        raise FuserlError(
            f"there is no dtype `{gather}`",
            where="`trainer.strategy.gather`",
            hint="bfloat16, or null for the weights'",
        )
    strategy = ShardedStrategy(writer, dtype, place.patience)
    if place.precision == "64-true":  # Lightning has no name for it here
        return {"strategy": strategy, "plugins": [DoublePrecision(), AtomicCheckpointIO(writer)]}
    return {"strategy": strategy, "precision": place.precision, "plugins": [AtomicCheckpointIO(writer)]}


@contextmanager
def left_as_found() -> Iterator[None]:
    """A process that was not started as a rank is none afterwards.

    Some strategies make a group of one, and say in the environment that it is a rank.
    """
    before = {name: os.environ[name] for name in OF_A_RANK if name in os.environ}
    try:
        yield
    finally:
        if "LOCAL_RANK" not in before:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name in OF_A_RANK:
                os.environ.pop(name, None)
            os.environ.update(before)


def joined(device: torch.device, patience: timedelta) -> DeviceMesh:
    """All processes of the run, on one axis. They meet before Lightning's trainer, as weights are loaded in pieces.

    Both kinds of memory can travel: weights between GPUs, numbers about them between processors.
    """
    if not torch.distributed.is_initialized():
        on_gpu = device.type == "cuda"
        there: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl" if on_gpu else "gloo", "timeout": patience}
        if on_gpu:
            there["device_id"] = device
        if "LOCAL_RANK" not in os.environ:  # nobody has started others
            there |= {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
        torch.distributed.init_process_group(**there)
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),), mesh_dim_names=("data_parallel",))


def gathered_in(cfg: DictConfig) -> torch.dtype | None:
    """The dtype in which weights of `fsdp2` travel and compute; None: their own."""
    return getattr(torch, cfg.trainer.strategy.gather) if cfg.trainer.strategy.gather else None


def deepspeed(place: Place, writer: Writer, *, stage: int, offload: bool) -> dict[str, Any]:
    """ZeRO, by DeepSpeed: moments and gradients cut up (stage 2), weights as well (stage 3). It writes checkpoints itself.

    Raises:
        FuserlError: there is no GPU and no processor asked for, DeepSpeed is not installed, or it cannot train so.
    """
    if place.accelerator == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read by DeepSpeed when it is imported
    elif not torch.cuda.is_available():
        raise FuserlError(
            "DeepSpeed needs a GPU, and none is visible",
            where="`trainer`",
            hint="use `trainer=fsdp2`, which cuts up as much, or, to try it out, `trainer.accelerator=cpu`",
        )
    if not find_spec("deepspeed"):
        raise FuserlError(
            "DeepSpeed is not installed", where="`trainer`", hint="`pip install fuserl[deepspeed]`, or `trainer=fsdp2`"
        )
    if stage == 3 and place.packing != "padded":
        raise FuserlError(
            "ZeRO-3 gathers what is called, and packs read the head without calling it",
            where="`trainer.packing`",
            hint="use `trainer.packing=padded`, or `trainer=fsdp2`, where packs are cut up as well",
        )
    if place.precision not in get_args(Precision):
        raise FuserlError(
            f"DeepSpeed does not train in {place.precision} here",
            where="`trainer.precision`",
            hint=f"{' or '.join(get_args(Precision))}; or `trainer=fsdp2`",
        )
    strategy = WholeDeepSpeed(config=settings(stage, offload, place.precision), timeout=place.patience)
    return {
        "strategy": strategy,
        "plugins": [AsElsewhere(place.precision, "cpu" if place.accelerator == "cpu" else "cuda")],
    }

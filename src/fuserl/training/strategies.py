"""How processes share a model: `conf/trainer` picks one of these functions, each gives keywords of Lightning's trainer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.training.checkpoints import AtomicCheckpointIO
from fuserl.training.sharded import ShardedStrategy
from fuserl.training.zero import WholeDeepSpeed, settings


@dataclass(frozen=True)
class Place:
    """Where a run takes place."""

    devices: int  # processes of one machine
    nodes: int  # machines
    accelerator: str
    precision: str  # Lightning's name
    packing: str
    compile: bool

    @classmethod
    def of(cls, cfg: DictConfig) -> Place:
        """Of a run's settings."""
        trainer = cfg.trainer
        return cls(
            trainer.devices, trainer.nodes, trainer.accelerator, trainer.precision, trainer.packing, trainer.compile
        )

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def cuts_up(cfg: DictConfig) -> bool:
    """Whether each process holds a share of weights, gradients and moments alone, as `fsdp2` has it."""
    return cfg.trainer.strategy["_target_"] == f"{__name__}.{fsdp2.__name__}"


def keywords(cfg: DictConfig) -> dict[str, Any]:
    """What `trainer.strategy` asks of Lightning's trainer, and the place beside it."""
    place = Place.of(cfg)
    chosen: dict[str, Any] = instantiate(cfg.trainer.strategy)(place)
    return {"accelerator": place.accelerator, "devices": place.devices, "num_nodes": place.nodes, **chosen}


def started_on_each(place: Place) -> FuserlError:
    """One process cannot start others on other machines."""
    return FuserlError(
        f"a run over {place.nodes} machines is started on each of them",
        where="`trainer.nodes`",
        hint=f"there: torchrun --nnodes={place.nodes} --nproc-per-node={place.devices} --rdzv-backend=c10d "
        "--rdzv-endpoint=FIRST_MACHINE:29500 -m fuserl.training.worker, and the same settings as here; see docs/scale.md",
    )


def automatic(place: Place) -> dict[str, Any]:
    """One process alone; more of them as `ddp`."""
    if place.ranks > 1:
        return ddp(place)
    return {"strategy": "auto", "precision": place.precision, "plugins": [AtomicCheckpointIO()]}


def ddp(place: Place) -> dict[str, Any]:
    """Every process holds everything; gradients are averaged while backward still runs."""
    return {"strategy": DDPStrategy(), "precision": place.precision, "plugins": [AtomicCheckpointIO()]}


def fsdp2(place: Place, *, gather: str | None) -> dict[str, Any]:
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
    strategy = ShardedStrategy(dtype)
    if place.precision == "64-true":  # Lightning has no name for it here
        return {"strategy": strategy, "plugins": [DoublePrecision(), AtomicCheckpointIO()]}
    return {"strategy": strategy, "precision": place.precision, "plugins": [AtomicCheckpointIO()]}


def deepspeed(place: Place, *, stage: int, offload: bool) -> dict[str, Any]:
    """ZeRO, by DeepSpeed: moments and gradients cut up (stage 2), weights as well (stage 3).

    Raises:
        FuserlError: there is no GPU, or DeepSpeed is not installed.
    """
    if place.accelerator == "cpu" or not torch.cuda.is_available():
        raise FuserlError(
            "DeepSpeed needs a GPU, and none is visible or asked for",
            where="`trainer`",
            hint="use `trainer=fsdp2`, which cuts up as much, on processors too",
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
    return {"strategy": WholeDeepSpeed(config=settings(stage, offload)), "precision": place.precision}

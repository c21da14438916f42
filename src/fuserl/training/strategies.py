"""How processes share a model: `conf/trainer` picks one of these functions, each gives keywords of Lightning's trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from fuserl.training.checkpoints import AtomicCheckpointIO


@dataclass(frozen=True)
class Place:
    """Where a run takes place."""

    devices: int  # processes of one machine
    nodes: int  # machines
    accelerator: str
    precision: str  # Lightning's name

    @classmethod
    def of(cls, cfg: DictConfig) -> Place:
        """Of a run's settings."""
        trainer = cfg.trainer
        return cls(trainer.devices, trainer.nodes, trainer.accelerator, trainer.precision)

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def keywords(cfg: DictConfig) -> dict[str, Any]:
    """What `trainer.strategy` asks of Lightning's trainer, and the place beside it."""
    place = Place.of(cfg)
    chosen: dict[str, Any] = instantiate(cfg.trainer.strategy)(place)
    return {"accelerator": place.accelerator, "devices": place.devices, "num_nodes": place.nodes, **chosen}


def automatic(place: Place) -> dict[str, Any]:
    """One process alone; more of them as `ddp`."""
    if place.ranks > 1:
        return ddp(place)
    return {"strategy": "auto", "precision": place.precision, "plugins": [AtomicCheckpointIO()]}


def ddp(place: Place) -> dict[str, Any]:
    """Every process holds everything; gradients are averaged while backward still runs."""
    return {"strategy": DDPStrategy(), "precision": place.precision, "plugins": [AtomicCheckpointIO()]}

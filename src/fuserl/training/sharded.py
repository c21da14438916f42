"""Lightning's strategy of FSDP2, for a policy that scores packs: cut up by `models/sharding.py`, saved by `shards.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from fuserl.models.scoring import Scoring
from fuserl.models.sharding import Gathered, shard
from fuserl.training.shards import Pieces


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and moments over all processes, which see different packs.

    Args:
        gather: the dtype in which weights travel and compute; None: their own.
    """

    def __init__(self, gather: torch.dtype | None = None) -> None:
        super().__init__(tensor_parallel_size=1)
        self.gather = gather

    def setup_environment(self) -> None:
        """One axis of processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def cut_up(self, policy: Any, scoring: Scoring) -> Scoring:
        """Cut the policy up where it is not yet; gives the way to run it then."""
        shard(policy, self.device_mesh["data_parallel"], self.gather)
        return scoring if isinstance(scoring, Gathered) else Gathered(scoring)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: pieces are written by name."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing, either."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """A folder, whole or absent; the one before it stays until Lightning removes it."""
        rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        folder, there = self.broadcast((Path(filepath), Path(filepath).exists()))
        if not there:  # a resumed run comes by the step that it has resumed from: its checkpoint is as good
            self._pieces().write(folder, rest, first=self.is_global_zero, wait=self.barrier)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Of any number of processes, in pieces or whole."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return self._pieces().read(path)
        return self._pieces().take(torch.load(path, mmap=True, map_location="cpu", weights_only=True))

    def _pieces(self) -> Pieces:
        (optimizer,) = self.optimizers
        assert self.lightning_module is not None
        return Pieces(self.lightning_module, optimizer)

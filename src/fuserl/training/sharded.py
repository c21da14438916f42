"""Lightning's strategy of FSDP2, for a policy that scores packs: cut up by `models/sharding.py`, saved by `shards.py`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from fuserl.models.scoring import Scoring
from fuserl.models.sharding import Gathered, shard
from fuserl.training.checkpoints import Writer, unwritten
from fuserl.training.shards import Pieces, write


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and moments over all processes, which see different packs.

    Args:
        writer: writes checkpoints.
        gather: the dtype in which weights travel and compute; None: their own.
        patience: that processes have with each other.
    """

    def __init__(self, writer: Writer, gather: torch.dtype | None, patience: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, timeout=patience)
        self.writer, self.gather = writer, gather

    def setup_environment(self) -> None:
        """One axis of processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        self._writers = dist.new_group(
            backend="gloo", timeout=self._timeout
        )  # its own: writing goes on beside training

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
        self.writer.finish()  # the one before may be of this step
        folder, there = self.broadcast((Path(filepath), Path(filepath).exists()))
        if there:  # a resumed run comes by the step that it has resumed from: its checkpoint is as good
            return
        rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        tensors, about = self._pieces().all()
        self.writer.write((tensors, rest | about), lambda copy: self._write(folder, *copy))

    def _write(self, folder: Path, tensors: dict[str, Any], rest: dict[str, Any]) -> None:
        try:
            write(folder, tensors, rest, self._writers)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise unwritten(folder, error) from error

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

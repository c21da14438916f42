"""Lightning's strategy of DeepSpeed, with the sums of a step, the numbers and the checkpoints that the other strategies have."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor, nn

from fuserl.errors import FuserlError
from fuserl.records.manifest import crc32
from fuserl.training.checkpoints import unwritten
from fuserl.training.shards import SUMS

OF = "of.txt"  # which stage and how many processes a checkpoint is of
Precision = Literal["32-true", "bf16-mixed"]


def settings(stage: int, offload: bool, precision: Precision = "32-true") -> dict[str, Any]:
    """DeepSpeed's own; Lightning adds clipping and packs a step.

    Weights are what they are in other strategies, and `bf16-mixed` is torch's autocast. DeepSpeed's own `bf16` would
    round the weights themselves, and what is computed with its masters could not be compared with the reference.

    Args:
        stage: 2 cuts up moments and gradients, 3 weights as well.
        offload: whether moments lie in main memory.
    """
    cut: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": True}
    found = {"zero_allow_untested_optimizer": True, "zero_optimization": cut, "train_micro_batch_size_per_gpu": 1}
    if offload:
        cut["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        found["zero_force_ds_cpu_optimizer"] = False  # theirs is compiled on the spot; torch's is fused, too
    if precision == "bf16-mixed":
        # no module's gradients are summed in half precision
        found["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return found


class AsElsewhere(DeepSpeedPrecision):
    """Rewards, reference log-probs and weights stay what they are; Lightning's would round them all to half precision."""

    def __init__(self, precision: Precision, device: str) -> None:
        super().__init__(precision)
        self.device = device

    def convert_module(self, module: nn.Module) -> nn.Module:
        """As it is."""
        return module

    def convert_input(self, data: Any) -> Any:
        """As it is."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """What DeepSpeed does inside its engine, for what is computed outside it."""
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=False)


class WholeDeepSpeed(DeepSpeedStrategy):
    """A step's packs are divided by their number once, and a checkpoint is whole or absent."""

    _engine: Any = None

    def setup_environment(self) -> None:
        """Lightning wants a GPU here; DeepSpeed itself runs on processors, too."""
        if self.root_device.type == "cuda":
            super().setup_environment()
        else:
            DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Processors have no numbers, which Lightning compares with those of processes."""
        if self.root_device.type == "cuda":
            super().setup_distributed()
        else:
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        self._format_batch_size_and_grad_accum_config()  # precision is in `settings`

    def init_deepspeed(self) -> None:
        """An engine for training. Validation before has the plain model, and validation after it that engine.

        Lightning makes one more engine for each validation, and takes all hooks off the model for it.
        """
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            super().init_deepspeed()
            self._engine = self.model
        elif self._engine is not None:
            self.model = self._engine
        self.lightning_module.to(self.root_device)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        import deepspeed  # type: ignore[import-not-found]

        place = {} if self.root_device.index is None else {"device_rank": self.root_device.index}
        engine, cut_up, _, _ = deepspeed.initialize(
            args=argparse.Namespace(**place),
            config=self.config,
            model=model,
            model_parameters=[weight for weight in model.parameters() if weight.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        cut_up.check_grad_overflow = True  # stage 2 takes NaN steps of half-precision weights otherwise
        return engine, cut_up

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided by the number of packs; the engine would do it again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def _said(self) -> str:
        assert isinstance(self.config, dict)
        cut = self.config["zero_optimization"]
        return f"ZeRO-{cut['stage']} over {self.world_size} process(es)"

    def norm_of_step(self) -> Tensor:
        """Of all gradients of the step before, unclipped; infinite where one was not finite: the engine left that step out."""
        norm = float(self._engine.get_global_grad_norm())
        return torch.tensor(norm if self._engine.was_step_applied() and norm >= 0 else math.inf)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the engine writes weights."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing, either."""
        return {}

    def save_checkpoint(self, checkpoint: dict, filepath: Any, storage_options: Any | None = None) -> None:
        """Beside the target, renamed when all processes have written theirs.

        Raises:
            FuserlError: it cannot be written.
        """
        folder, there = self.broadcast((Path(filepath), Path(filepath).exists()))
        if there:  # a resumed run comes by the step that it has resumed from
            return
        part = folder.with_suffix(".part")
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, part)
            self.barrier()
            if self.is_global_zero:
                (part / OF).write_text(self._said(), encoding="utf-8")
                _seal(part)
                part.rename(folder)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) or "inline_container" in str(error):  # torch's writer knows no other
                raise unwritten(folder, error) from error
            raise
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """DeepSpeed's own only; moments too, where training goes on.

        Raises:
            FuserlError: another strategy has written it, or another number of processes.
        """
        folder = Path(checkpoint_path)
        if not (folder / OF).is_file():
            raise FuserlError(
                "DeepSpeed cannot read a checkpoint that another strategy has written",
                where=str(folder),
                hint="go on with `trainer=fsdp2` or `trainer=ddp`, which read each other's, or give another `output`",
            )
        if (written := (folder / OF).read_text(encoding="utf-8")) != self._said():
            raise FuserlError(
                f"the checkpoint is of {written}, and this run is {self._said()}, which cannot read it",
                where=str(folder),
                hint="go on as before, or give another `output`; `trainer=fsdp2` may go on over any number of processes",
            )
        assert self.lightning_module is not None
        state = self.lightning_module.trainer.state
        _, rest = self.deepspeed_engine.load_checkpoint(
            str(folder),
            tag="checkpoint",
            load_optimizer_states=state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING,
            load_lr_scheduler_states=False,
            load_module_strict=self.lightning_module.strict_loading,
        )
        return rest


def _seal(part: Path) -> None:
    """Flush the pieces to the disk, with their sums beside them."""
    files = [path for path in sorted(part.rglob("*")) if path.is_file()]
    sums = {str(path.relative_to(part)): crc32(path) for path in files}
    (part / f"deepspeed{SUMS}").write_text(json.dumps(sums), encoding="utf-8")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())

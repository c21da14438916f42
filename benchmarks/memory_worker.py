"""One training run in a process of its own; prints a line of JSON with what memory its parts took, in bytes.

    python benchmarks/memory_worker.py OVERRIDE ...

The peak is the kernel's own high-water mark of resident memory, less what the interpreter took with every library, tokenizer
and the data before the first weight was read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning.pytorch.callbacks  # noqa: F401  (libraries count for the baseline, not for the run)
import peft  # noqa: F401
import torch
import transformers.models.auto.modeling_auto  # noqa: F401

from fuserl.settings import compose
from fuserl.training import setup
from fuserl.training.group_module import GroupModule
from fuserl.training.run import train


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process; `VmHWM` is the high-water mark."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """The high-water mark starts again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Wraps the module's steps: the peak of everything before, in and after them."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {"setup": 0, "validation": 0, "steps": 0, "afterwards": 0}
        self.phase, self.sizes, self.baseline = "setup", {}, 0

    def enter(self, phase: str) -> None:
        """Book the peak of the phase that ends."""
        self.peaks[self.phase] = max(self.peaks[self.phase], resident("VmHWM"))
        forget_peak()
        self.phase = phase

    def install(self) -> None:
        """On the module's class."""
        load = setup.load_policy

        def load_policy(*args, **kwargs):
            if not self.baseline:
                self.baseline = resident()
                forget_peak()
            return load(*args, **kwargs)

        setup.load_policy = load_policy
        step, validate, end = GroupModule.training_step, GroupModule.validation_step, GroupModule.on_train_end

        def training_step(module, *args):
            if self.phase != "steps":
                self.enter("steps")
            return step(module, *args)

        def validation_step(module, *args):
            if self.phase != "validation":
                self.enter("validation")
            return validate(module, *args)

        def on_train_end(module):
            weights = list(module.policy.parameters())
            states = module.trainer.optimizers[0].state.values()
            self.sizes = {
                "weights": sum(weight.nbytes for weight in weights),
                "gradients": sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
                "optimizer": sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor)),
            }
            self.enter("afterwards")
            return end(module)

        GroupModule.training_step, GroupModule.validation_step = training_step, validation_step
        GroupModule.on_train_end = on_train_end


def main(overrides: list[str]) -> None:
    """Train and report."""
    cfg, watch = compose("train", overrides), Watch()
    watch.install()
    train(cfg)
    watch.enter("afterwards")
    peaks = {phase: peak - watch.baseline for phase, peak in watch.peaks.items()}
    print("RESULT " + json.dumps({"baseline": watch.baseline, "peaks": peaks, **watch.sizes}))


if __name__ == "__main__":
    main(sys.argv[1:])

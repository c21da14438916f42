"""One training run of TRL in a process of its own; prints a line of JSON with its losses, seconds a step and peak memory.

python benchmarks/trl_worker.py {dpo,sft} MODEL DATA ROWS_A_STEP MICRO STEPS LR OUT
"""

from __future__ import annotations

import json
import resource
import sys
import time

import datasets
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of every optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)


def in_order(trainer):
    """The same trainer, which takes rows in the order of the file, as ours does with the same seed switched off."""

    class InOrder(trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    return InOrder


def main(method: str, model: str, data: str, rows: int, micro: int, steps: int, lr: float, out: str) -> None:
    torch.manual_seed(0)
    common = dict(
        output_dir=out, per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro, max_steps=steps,
        learning_rate=lr, lr_scheduler_type="constant", optim="adamw_torch", max_grad_norm=1.0, weight_decay=0.0, bf16=False,
        use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, max_length=None, gradient_checkpointing=False,
        disable_tqdm=True, dataloader_num_workers=0, seed=0,
    )  # fmt: skip
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(model)
    rows_of = datasets.load_dataset("json", data_files=data, split="train", cache_dir=f"{out}/cache")
    clock = Clock()
    if method == "dpo":
        config = DPOConfig(**common, beta=0.1, precompute_ref_log_probs=True, precompute_ref_batch_size=1)
        trainer = in_order(DPOTrainer)(
            policy, args=config, train_dataset=rows_of, processing_class=words, callbacks=[clock]
        )
    else:
        config = SFTConfig(**common, completion_only_loss=True, packing=False)
        trainer = in_order(SFTTrainer)(
            policy, args=config, train_dataset=rows_of, processing_class=words, callbacks=[clock]
        )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"losses": losses, "seconds": clock.seconds, "peak_mb": peak}))


if __name__ == "__main__":
    method, model, data, rows, micro, steps, lr, out = sys.argv[1:]
    main(method, model, data, int(rows), int(micro), int(steps), float(lr), out)

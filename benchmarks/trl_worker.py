"""TRL's own trainers, with one callback: the clock. `python -m benchmarks.trl_worker JOB.json`, see `turns`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.clock import Clock, digest_of_sequences, read_job
from benchmarks.turns import Job, dtype_name


class InTurn(TrainerCallback):
    """Hands the Trainer's steps to the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.clock.begin(model)

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.clock.keep_gradient(model)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.end()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.clock.losses.append(float(logs["loss"]))
            if len(self.clock.losses) == 1:
                self.clock.grad_norm = float(logs["grad_norm"])


def dpo(job: Job, common: dict[str, Any], **parts: Any) -> tuple[Any, Iterator[tuple[list[int], int]]]:
    """The trainer, and the sequences it trains on."""
    settings = {"beta": 0.1, "precompute_ref_log_probs": True, "precompute_ref_batch_size": 2}
    trainer = DPOTrainer(args=DPOConfig(**common | settings | job.settings), **parts)
    rows: Any = trainer.train_dataset
    return trainer, (
        ([*row["prompt_ids"], *row[side]], len(row[side])) for row in rows for side in ("chosen_ids", "rejected_ids")
    )


def sft(job: Job, common: dict[str, Any], **parts: Any) -> tuple[Any, Iterator[tuple[list[int], int]]]:
    """The trainer, and the sequences it trains on."""
    trainer = SFTTrainer(args=SFTConfig(**common | {"completion_only_loss": True} | job.settings), **parts)
    return trainer, _sequences(trainer.train_dataset)


def _sequences(rows: Any) -> Iterator[tuple[list[int], int]]:
    """Packed rows are cut apart again."""
    for row in rows:
        start = 0
        for size in row["seq_lengths"] if "seq_lengths" in row else [len(row["input_ids"])]:
            part = slice(start, start + size)
            yield row["input_ids"][part], sum(label != -100 for label in row["labels"][part])
            start += size


METHODS = {"dpo": dpo, "sft": sft}


def common_settings(job: Job) -> dict[str, Any]:
    """Plain AdamW at a constant rate, rows in the order of the file, nothing saved, weights in the given dtype."""
    return dict(
        output_dir=f"{job.out}/trl", max_steps=job.steps + 1, learning_rate=job.lr, lr_scheduler_type="constant",
        warmup_steps=0, weight_decay=0.0, max_grad_norm=1e9, optim="adamw_torch_fused", bf16=False, fp16=False,
        use_cpu=job.device == "cpu", report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        gradient_checkpointing=False, max_length=None, dataloader_num_workers=0, seed=0,
        train_sampling_strategy="sequential",
    )  # fmt: skip


def main() -> None:
    """Train until the clock ends the process."""
    job, channel = read_job()
    clock = Clock(job, channel)
    flash = job.device == "cuda" and find_spec("flash_attn") is not None
    policy = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=getattr(torch, dtype_name(job.dtype)),
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    rows = datasets.load_dataset("json", data_files=job.data, split="train", cache_dir=f"{job.out}/datasets")
    trainer, sequences = METHODS[job.method](
        job,
        common_settings(job),
        model=policy,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[InTurn(clock)],
    )
    clock.tokens = digest_of_sequences(sequences)
    trainer.train()


if __name__ == "__main__":
    main()

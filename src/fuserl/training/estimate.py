"""What a run will cost, counted from its plan and its model's configuration: steps, tokens, FLOPs, hours, disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from fuserl.tokens.plan import Plan, first_of_kind
from fuserl.training.callbacks.build import every
from fuserl.training.datamodule import Split
from fuserl.training.flops import Work, forward_flops, recomputed_flops, training_flops, work_by_row, work_of_run
from fuserl.training.memory import Memory, Model
from fuserl.training.prepare import Prepared
from fuserl.training.space import checkpoint_bytes, model_bytes, most_checkpoints

ENTRY = 64  # bytes of the reference cache on disk for one response: key, sum, count, SQLite's own


@dataclass(frozen=True)
class Time:
    """Seconds on all devices together, at the stated share of the peak rate."""

    training: float
    reference: float  # where nothing is cached
    validation: float


@dataclass(frozen=True)
class Amounts:
    """Of the whole run, over all devices."""

    steps: int
    packs: int
    prompts: int
    responses: int
    tokens_computed: int
    tokens_naive: int
    tokens_trained: int
    attended_pairs: int  # summed over layers
    useful_flops: int
    extra_flops: int  # what is computed more than once
    reference_flops: int
    validation_flops: int
    token_store_bytes: int
    reference_cache_bytes: int
    checkpoint_bytes: int  # one: trained weights and their moments
    checkpoints_bytes: int  # as many as lie on the disk at a time
    model_bytes: int  # `model/`


def amounts_of(cfg: DictConfig, model: Model, prepared: Prepared, tokens_naive: int) -> Amounts:
    """Counted from the plan."""
    train, held_out, products = prepared.train, prepared.validation, model.products
    plan, windows, apart = train.plan, products.windows, cfg.trainer.packing == "padded"
    work = work_of_run(plan, work_by_row(train, windows))
    rows = work_by_row(train, windows, apart=apart)
    done = work_of_run(plan, rows)
    again = recomputed_flops(products, done) if cfg.target.checkpointing == "full" else 0
    if prepared.objective.distillation is not None and not apart:  # the head's logits once more in backward
        again += forward_flops(products, Work(0, 0, work.trained))
    once = _sum(rows[plan.rows])
    scored = _sum(work_by_row(held_out, windows, apart=apart)[held_out.plan.rows]) if held_out else Work(0, 0, 0)
    uses_reference = prepared.objective.uses_reference
    entries = sum(_unique_responses(split) for split in (train, held_out) if split) if uses_reference else 0
    return Amounts(
        steps=plan.steps,
        packs=plan.steps * plan.packs_per_step * plan.ranks,
        prompts=len(plan.rows),
        responses=int(train.used[plan.rows].sum()),
        tokens_computed=sum(plan.tokens_of_step(step) for step in range(plan.steps)),
        tokens_naive=tokens_naive,
        tokens_trained=work.trained,
        attended_pairs=work.attended,
        useful_flops=training_flops(products, work),
        extra_flops=training_flops(products, done) - training_flops(products, work) + again,
        reference_flops=forward_flops(products, once) + forward_flops(products, scored) if uses_reference else 0,
        validation_flops=validations(cfg, plan) * forward_flops(products, scored),
        token_store_bytes=sum(_folder_bytes(split) for split in (train, held_out) if split),
        reference_cache_bytes=ENTRY * entries,
        checkpoint_bytes=checkpoint_bytes(model.policy),
        checkpoints_bytes=most_checkpoints(cfg) * checkpoint_bytes(model.policy),
        model_bytes=model_bytes(model.policy),
    )


def _sum(by_row: np.ndarray) -> Work:
    return Work(*map(int, by_row.sum(axis=0)))


def _unique_responses(split: Split) -> int:
    return int(np.asarray(first_of_kind(split.store, split.used, split.plan.rows)).sum())


def _folder_bytes(split: Split) -> int:
    return sum(file.stat().st_size for file in split.store.folder.iterdir())


def validations(cfg: DictConfig, plan: Plan) -> int:
    """Before, during and after training."""
    return 1 + math.ceil(plan.steps / every(cfg.trainer.val_every, plan.steps))


def time_of(amounts: Amounts, rate: float, mfu: float, devices: int) -> Time:
    """At `mfu` of a device's peak `rate` (FLOP/s); what is recomputed takes time without being useful."""
    speed = rate * mfu * devices
    return Time(
        (amounts.useful_flops + amounts.extra_flops) / speed,
        amounts.reference_flops / speed,
        amounts.validation_flops / speed,
    )


def as_dict(part: Any) -> dict[str, Any]:
    """For JSON."""
    found = asdict(part)
    return found | {"step": part.step, "peak": part.peak} if isinstance(part, Memory) else found

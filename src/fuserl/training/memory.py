"""Bytes of one device at the worst moment of a run, by part: a rehearsal of one step, and what a strategy divides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fuserl.models.scoring import Packed, Padded, Scoring, causal_lm, layers, rows_within
from fuserl.models.weightless import weightless
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.tokens.plan import first_of_kind, next_fit
from fuserl.training.datamodule import Split
from fuserl.training.flops import Products
from fuserl.training.hardware import Hardware
from fuserl.training.heap import LIVED_IN, LIVED_IN_BESIDE_ADAPTERS, Heap
from fuserl.training.prepare import Prepared
from fuserl.training.rehearsal import Peak, rehearse
from fuserl.training.setup import dtype_of, logits_gib, rounded_up
from fuserl.training.strategies import cuts_up, gathered_in

LOOKED_AT = 64  # steps with the most tokens, among which the largest pack is looked for
FILE = 5 * 10**9  # bytes of one file of `model/` where it is written in pieces
MOMENTS = 2  # tensors as large as the weights that AdamW keeps
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part, at the worst moment of a run."""

    weights: int
    optimizer: int
    gradients: int  # of weights, and those on their way through the layers
    activations: int
    head: int  # logits, and what the head's gradients need
    kept: int  # holes of a processor's heap
    buckets: int  # of gradients on their way to other devices
    scoring: int  # a pack's without gradients, beside those of the last step and a reference of another model
    export: int  # the written model, read back beside the trained one
    overhead: int  # not the run's: the processor's interpreter, the GPU's context

    @property
    def step(self) -> int:
        """At the worst moment of an optimiser step."""
        mine = self.weights + self.optimizer + self.gradients + self.activations + self.head
        return self.overhead + mine + self.kept + self.buckets

    @property
    def peak(self) -> int:
        """Of the run."""
        rest = self.overhead + self.weights + self.optimizer + self.buckets
        return max(self.step, rest + self.scoring, rest + self.export)


class Model:
    """The policy of a configuration, weightless, and what follows from its shapes alone."""

    def __init__(self, cfg: DictConfig, checkpointing: str) -> None:
        lora: Any = OmegaConf.to_container(cfg.target.lora) if cfg.target.lora else None
        self.policy = weightless(
            cfg.target.path,
            dtype=dtype_of(cfg),
            lora=lora,
            checkpointing=checkpointing,
            packing=cfg.trainer.packing,
            revision=cfg.target.revision,
        )
        self.products = Products.of(self.policy)
        weights = list(self.policy.parameters())
        self.dtype: torch.dtype = weights[0].dtype
        self.num_parameters = sum(weight.numel() for weight in weights)
        self.bytes = sum(part.nbytes for part in (*weights, *self.policy.buffers()))
        self.num_trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        self.trained_bytes = sum(weight.nbytes for weight in weights if weight.requires_grad)
        self.layer_bytes = [sum(w.nbytes for w in layer.parameters()) for layer in layers(causal_lm(self.policy)) or ()]


def scoring_of(cfg: DictConfig, policy: Any, hardware: Hardware, *, linear: bool) -> Scoring:
    """As `Setup` chooses it, on the hardware that is planned for."""
    if cfg.trainer.packing == "padded":
        return Padded()
    gib = logits_gib(cfg.trainer.logits_memory, hardware.memory if hardware.accelerator == "gpu" else None)
    return Packed(backend_of(cfg, policy, hardware), rows_within(gib, policy), linear)


def backend_of(cfg: DictConfig, policy: Any, hardware: Hardware) -> str:
    """The attention kernel that would be chosen, if the best package is installed there."""
    if cfg.trainer.attention != "auto":
        return cfg.trainer.attention
    if hardware.accelerator == "cpu":
        return "sdpa"
    half = cfg.trainer.precision in HALF or next(policy.parameters()).dtype.itemsize == 2
    capped = bool(getattr(policy.config.get_text_config(), "attn_logit_softcapping", None))
    return "sdpa" if not half else "flex" if capped else "torch_varlen"


def rounded(cfg: DictConfig, split: Split, hardware: Hardware) -> Split:
    """Packs as long as they are on a GPU, which likes few lengths."""
    if hardware.accelerator == "cpu" or cfg.trainer.packing == "padded":
        return split
    return rounded_up(split)


def pack_size(split: Split, rows: Sequence[int], *, padded: bool) -> int:
    """Tokens that a pack of these groups computes; padded: each response as long as the longest with its prompt."""
    if not len(rows):
        return 0
    at = np.asarray(rows)
    first = first_of_kind(split.store, split.used, at)
    prompt = np.asarray(split.store.prompt_tokens)[at][:, None]
    branch = np.asarray(split.store.branch_tokens)[at]
    if split.truncate is not None:
        branch = np.minimum(branch, split.truncate - prompt)
    branch = np.where(first, branch, 0)
    return int(first.sum() * (prompt + branch).max() if padded else prompt.sum() + branch.sum())


def largest_pack(split: Split, *, padded: bool) -> GroupBatch:
    """The pack with most tokens, among the steps with most."""
    plan = split.plan
    steps = sorted(range(plan.steps), key=plan.tokens_of_step, reverse=True)[:LOOKED_AT]
    _, step, place, rank = max(
        (pack_size(split, pack.groups, padded=padded), -step, place, rank)
        for step in steps
        for rank, packs in enumerate(plan.step(step).packs)
        for place, pack in enumerate(packs)
    )
    return split.pack(-step, place, rank)


def reference_pack(split: Split, *, padded: bool) -> GroupBatch:
    """The largest pack of those that `reference.fill` makes, where nothing is cached."""
    rows, tokens = split.plan.rows, split.plan.costs.tokens
    packs = next_fit(tokens, split.plan.max_tokens)
    if padded:
        largest = max(packs, key=lambda members: pack_size(split, rows[members].tolist(), padded=True))
    else:
        largest = packs[int(np.add.reduceat(tokens, [members[0] for members in packs]).argmax())]
    return collate(split.store, rows[largest].tolist(), split.used, truncate=split.truncate)


def memory_of(cfg: DictConfig, model: Model, prepared: Prepared, hardware: Hardware) -> Memory:
    """By a rehearsal of one step."""
    plan, padded = prepared.train.plan, cfg.trainer.packing == "padded"
    splits = [split for split in (prepared.train, prepared.validation) if split]
    before = [reference_pack(split, padded=padded) for split in splits] if prepared.objective.uses_reference else []
    before += [largest_pack(prepared.validation, padded=padded)] if prepared.validation else []
    scoring = scoring_of(cfg, model.policy, hardware, linear=prepared.objective.linear)
    peak: Peak = rehearse(
        model.policy,
        scoring,
        largest_pack(rounded(cfg, prepared.train, hardware), padded=padded),
        before=before,
        keeps_gradients=plan.packs_per_step > 1,
        half=HALF.get(cfg.trainer.precision),
        heap=heap_of(model, hardware),
        distillation=prepared.objective.distillation,
    )
    whole = Memory(
        weights=model.bytes,
        optimizer=MOMENTS * model.trained_bytes,
        gradients=max(peak.gradients, 0),
        activations=peak.activations,
        head=peak.head,
        kept=peak.kept,
        buckets=model.trained_bytes if plan.ranks > 1 else 0,
        scoring=model.trained_bytes + peak.scoring + other_reference(cfg, prepared, plan.ranks),
        export=model.bytes,
        overhead=int(hardware.overhead),
    )
    cuts = cuts_up(cfg) and plan.ranks > 1
    return cut_up(whole, model, plan.ranks, hardware, gathered_in(cfg)) if cuts else whole


def cut_up(whole: Memory, model: Model, ranks: int, hardware: Hardware, gather: torch.dtype | None = None) -> Memory:
    """A device's share under `fsdp2`: what is cut up, and what is gathered while it computes (docs/scale.md).

    Two layers are whole at a time, one that computes and one that comes; all that is no layer (embeddings, head) is
    whole through a pack, its gradient too. It is loaded, and `model/` is read back, in pieces; the first process puts
    together a file of `model/` in main memory.

    Args:
        gather: the dtype in which weights travel and compute; None: their own.
    """
    narrow = gather.itemsize / model.dtype.itemsize if gather else 1.0
    layer = int(2 * max(model.layer_bytes, default=0) * narrow)
    root = int((model.bytes - sum(model.layer_bytes)) * narrow)
    share = model.trained_bytes // ranks
    weights, optimizer = model.bytes // ranks + layer + root, MOMENTS * share
    trained = model.trained_bytes / max(1, model.bytes)
    gathered = int(trained * (layer + root))
    return replace(
        whole,
        weights=weights,
        optimizer=optimizer,
        gradients=share + gathered + max(0, whole.gradients - model.trained_bytes),
        buckets=0,
        scoring=whole.scoring - model.trained_bytes + share,
        export=model.bytes // ranks + (0 if hardware.accelerator == "gpu" else min(FILE, model.bytes)),
    )


def other_reference(cfg: DictConfig, prepared: Prepared, ranks: int) -> int:
    """Bytes of the model that scores as reference, where it is not the policy."""
    if not cfg.reference.path or not prepared.objective.uses_reference:
        return 0
    model = weightless(
        cfg.reference.path, dtype=dtype_of(cfg), lora=None, checkpointing="none", packing=cfg.trainer.packing,
        revision=None,
    )  # fmt: skip
    every = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    return every // ranks if cuts_up(cfg) else every


def heap_of(model: Model, hardware: Hardware) -> Heap | None:
    """A processor's; a GPU's allocator hardly leaves holes."""
    if hardware.accelerator != "cpu":
        return None
    return Heap(LIVED_IN if model.num_trained == model.num_parameters else LIVED_IN_BESIDE_ADAPTERS)

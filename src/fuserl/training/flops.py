"""Useful FLOPs: what the mathematics asks for, by formula. Nothing recomputed, padded or masked away counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fuserl.models.scoring import causal_lm, decoder
from fuserl.tokens.plan import Plan, chosen_at, first_of_kind
from fuserl.training.datamodule import Split


@dataclass(frozen=True)
class Products:
    """Weights that a token is multiplied with, and what a (query, key) pair costs."""

    matrices: int  # weights of the decoder's matrix products; of experts, those that one token meets
    adapters: int  # LoRA's
    head: int  # V · D
    pair: int  # multiplications of one attended pair: query heads · (key size + value size)
    windows: tuple[int | None, ...]  # one a layer
    all_trained: bool  # False: only the adapters are

    @classmethod
    def of(cls, model: Any) -> Products:
        """A causal LM's, with or without LoRA; its weights need not exist (meta or fake tensors)."""
        base = causal_lm(model)
        config = base.config.get_text_config()
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices = adapters = 0
        for name, weight in decoder(base).named_parameters():
            if weight.ndim < 2 or id(weight) in tables:
                continue
            if ".lora_" in name:
                adapters += weight.numel()
            else:
                matrices += int(weight.numel() * _met(weight, config))
        head = base.get_output_embeddings().weight
        return cls(matrices, adapters, head.numel(), _pair(config), windows_of(config), adapters == 0)


def _pair(config: Any) -> int:
    """Multiplications of one attended pair in one layer; none where there is no attention."""
    if not (heads := getattr(config, "num_attention_heads", 0)):
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * (size + (getattr(config, "v_head_dim", None) or size))


def _met(weight: nn.Parameter, config: Any) -> float:
    """Share of a stack of experts [E, ...] that one token goes through."""
    return getattr(config, "num_experts_per_tok", weight.shape[0]) / weight.shape[0] if weight.ndim == 3 else 1.0


def windows_of(config: Any) -> tuple[int | None, ...]:
    """Tokens that each layer sees back, itself included; None: all."""
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if kinds := getattr(config, "layer_types", None):
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return (window if getattr(config, "use_sliding_window", True) else None,) * layers


@dataclass(frozen=True)
class Work:
    """What a device must compute."""

    tokens: int  # prompts once, unique responses
    attended: int  # (query, key) pairs, summed over layers
    trained: int  # tokens whose log-probs are needed


def forward_flops(model: Products, work: Work) -> int:
    """Two FLOPs a multiplication: every token by every matrix, every attended pair, the head where it is needed."""
    linear = (model.matrices + model.adapters) * work.tokens
    return 2 * (linear + model.pair * work.attended + model.head * work.trained)


def training_flops(model: Products, work: Work) -> int:
    """Forward and backward. Backward is two products for each: by the input, and by the weight where that is trained."""
    frozen = 0 if model.all_trained else 2 * (model.matrices * work.tokens + model.head * work.trained)
    return 3 * forward_flops(model, work) - frozen


def recomputed_flops(model: Products, work: Work) -> int:
    """What full activation checkpointing adds: the decoder's forward once more."""
    return forward_flops(model, Work(work.tokens, work.attended, 0))


def seen_before(length: np.ndarray, window: int | None) -> np.ndarray:
    """Pairs that the first `length` positions attend to: 1 + 2 + ..., no more than `window` each."""
    full = length * (length + 1) // 2
    over = np.maximum(length - window, 0) if window else 0
    return full - over * (over + 1) // 2


def work_by_row(split: Split, windows: Sequence[int | None], *, apart: bool = False) -> np.ndarray:
    """[N, 3] int64: tokens, attended pairs over all layers, tokens through the head of every group of the store.

    Args:
        apart: as separate forwards do it: a prompt once for each response, all tokens through the head.
    """
    store = split.store
    rows = np.arange(len(store))
    prompt = np.asarray(store.prompt_tokens, np.int64)[:, None]
    branch = np.asarray(store.branch_tokens, np.int64)
    if split.truncate is not None:
        branch = np.minimum(branch, split.truncate - prompt)
    first = first_of_kind(store, split.used, rows)
    branch = np.where(first, branch, 0).clip(min=0)
    trained = np.where(first, branch - np.asarray(store.untrained), 0).clip(min=0)
    attended = np.zeros(len(store), np.int64)
    prompts = first.sum(axis=1) if apart else np.ones(len(store), np.int64)
    for window in set(windows):
        mine = seen_before(prompt, window)
        pairs = prompts * mine[:, 0] + np.where(first, seen_before(prompt + branch, window) - mine, 0).sum(axis=1)
        attended += list(windows).count(window) * pairs
    tokens = prompts * prompt[:, 0] + branch.sum(axis=1)
    return np.stack([tokens, attended, tokens if apart else trained.sum(axis=1)], axis=1)


def work_of_step(plan: Plan, by_row: np.ndarray, step: int) -> Work:
    """All ranks' work of one optimiser step."""
    return Work(*map(int, by_row[plan.rows[chosen_at(plan, step)]].sum(axis=0)))


def work_of_run(plan: Plan, by_row: np.ndarray) -> Work:
    """All steps' and all ranks'."""
    times = np.zeros(len(plan.rows), np.int64)
    for step in range(plan.steps):
        times[chosen_at(plan, step)] += 1
    return Work(*map(int, times @ by_row[plan.rows]))


def flops_of_step(model: Any, split: Split) -> Callable[[int], int]:
    """Useful FLOPs of an optimiser step, all ranks together, by its number."""
    products = Products.of(model)
    by_row = work_by_row(split, products.windows)
    return lambda step: training_flops(products, work_of_step(split.plan, by_row, step))

"""AdamW with the schedule of the papers: linear warm-up, then cosine (or flat, or linear) to a floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fuserl.errors import FuserlError


def cosine(done: float) -> float:
    """Factor of the peak rate when a share `done` in [0, 1] of the decay is over."""
    return 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """A straight line to zero."""
    return 1 - done


def flat(done: float) -> float:
    """No decay."""
    return 1.0


def decay_named(name: str) -> Callable[[float], float]:
    """The decay that `optimizer.decay` names.

    Raises:
        FuserlError: there is none of that name.
    """
    known = {function.__name__: function for function in (cosine, linear, flat)}
    if name not in known:
        raise FuserlError(f"there is no decay `{name}`", where="`optimizer.decay`", hint=f"one of {', '.join(known)}")
    return known[name]


def rate_factor(step: int, *, num_steps: int, warmup: float, decay: Callable[[float], float], floor: float) -> float:
    """Factor of the peak learning rate for optimiser step `step` (from 0).

    Args:
        warmup: share of `num_steps` that rises linearly, in [0, 1).
        floor: share of the peak rate that the decay ends on.
    """
    warm = math.ceil(warmup * num_steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, num_steps - warm)
    return floor + (1 - floor) * decay(min(1.0, done))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float | int) -> list[dict]:
    """Decay for matrices only; norms and biases (fewer than two axes) get none."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(
    model: nn.Module,
    *,
    num_steps: int,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float | int,
    warmup: float,
    decay: Callable[[float], float],
    floor: float,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimiser, its step fused into one pass over memory, and its per-step schedule."""
    groups = parameter_groups(model.named_parameters(), weight_decay)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused)
    # Lightning refuses to clip what may unscale gradients itself; ours never does: a scaler, if any, does it before.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    factor = partial(rate_factor, num_steps=num_steps, warmup=warmup, decay=decay, floor=floor)
    return optimizer, LambdaLR(optimizer, factor)

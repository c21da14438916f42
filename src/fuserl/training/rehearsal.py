"""One optimiser step with tensors that have shapes but no memory: what would be alive, and when most of it.

The model, the head and autograd are those of the run; only attention is a stand-in that keeps what the kernel keeps. So
the estimate follows the code: architectures, LoRA, mixed precision and activation checkpointing need no formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fuserl.models.scoring import Scoring, causal_lm, decoder
from fuserl.objectives.distillation import Distillation, combined
from fuserl.objectives.terms import GroupScores, Totals
from fuserl.tokens.collate import GroupBatch
from fuserl.training.heap import Heap
from fuserl.training.ledger import KEPT, KINDS, Ledger
from fuserl.training.token_module import sums_of


@dataclass(frozen=True)
class Peak:
    """Bytes at the worst moment of a step, weights and optimiser states not counted."""

    activations: int
    head: int  # logits and what the head's gradients need
    gradients: int  # of weights, and those on their way through the layers
    kept: int  # holes of a processor's heap
    scoring: int  # at the worst moment of a pack that is scored without gradients

    @property
    def total(self) -> int:
        """Of the step."""
        return self.activations + self.head + self.gradients + self.kept


def _sum_of_logps(scores: GroupScores) -> Totals:
    """Stands for the objective: its table is small, and what it computes on it as well."""
    total = scores.policy_logps.sum(dim=1)
    return Totals(sum=total, count=torch.ones_like(total), weight=torch.ones_like(total))


def rehearse(
    model: Any,
    scoring: Scoring,
    pack: GroupBatch,
    *,
    before: Sequence[GroupBatch],
    keeps_gradients: bool,
    half: torch.dtype | None,
    heap: Heap | None,
    distillation: Distillation | None = None,
) -> Peak:
    """The second of two packs: from then on gradients of the one before are alive in forward.

    Args:
        model: see `weightless`.
        pack: the largest of the run.
        before: large packs that are scored without gradients before training: reference and validation.
        keeps_gradients: several packs make a step, so that backward adds to gradients.
        half: autocast's dtype.
        heap: a processor's, in which smaller blocks lie.
        distillation: the objective's.
    """
    mode = next(model.parameters()).fake_mode
    ledger = Ledger(heap)
    ledger.ignore([*model.parameters(), *model.buffers()])
    precision = torch.autocast("cpu", dtype=half, cache_enabled=False) if half else nullcontext()  # as Lightning does
    scored = 0
    with mode, ledger, _layers_are_told(model, ledger):
        for batch in before:
            with torch.no_grad(), precision, ledger.during("activations"):
                scoring.score(model, batch)
            scored = ledger.peak
        for again in (False, True):
            ledger.forget_peak()
            with ledger.during("activations"), precision, ledger.graph():
                if distillation is None:
                    loss = scoring.loss(model, pack, _sum_of_logps).sum
                else:
                    loss = combined(sums_of(model, scoring, pack, distillation), 0.5).sum.sum()
            if again and not keeps_gradients:
                model.zero_grad(set_to_none=True)
            with ledger.during("gradients"):
                loss.backward()
            del loss
            ledger.call_gradients(model.parameters())
        step = ledger.at_peak
        model.zero_grad(set_to_none=True)
    return Peak(*(step.get(kind, 0) for kind in (*KINDS, KEPT)), scoring=scored)


@contextmanager
def _layers_are_told(model: Any, ledger: Ledger) -> Iterator[None]:
    """Layers make activations, also when backward runs them again; what follows the decoder belongs to the head."""
    stack = decoder(causal_lm(model))
    layers = [module for found in stack.modules() if isinstance(found, nn.ModuleList) for module in found]
    kinds: list[str] = []

    def enter(*_: object) -> None:
        kinds.append(ledger.kind)
        ledger.kind = "activations"

    def leave(*_: object) -> None:
        ledger.kind = kinds.pop()

    def to_head(*_: object) -> None:
        ledger.kind = "logits and head"

    hooks = [stack.register_forward_hook(to_head)]
    for layer in layers:
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""The LightningModule for every objective: it scores packs, calls the objective, and steps. No mathematics here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fuserl.models.scoring import Scoring, table
from fuserl.objectives.terms import GroupScores, Objective, Pairs, Totals
from fuserl.tokens.collate import GroupBatch
from fuserl.training.metrics import Slices, Tally, tally
from fuserl.training.sharded import ShardedStrategy


@dataclass(frozen=True)
class Report:
    """How scores are measured."""

    slices: Slices
    train_domain: Tensor  # [rows of the training store], positions in slices.domains
    validation_domain: Tensor  # the same for the validation store
    pairs: Callable[[GroupScores], Pairs]  # what validation compares, also for objectives without pairs


class GroupModule(L.LightningModule):
    """A policy trained on groups. The reference is never held here: its log-probs come with the batch.

    Args:
        policy: a causal language model.
        scoring: how the policy runs over packs.
        optimizer: `optimizer(model) -> (optimizer, per-step schedule)`.
        report: what to measure.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        scoring: Scoring,
        objective: Objective,
        optimizer: Callable[[torch.nn.Module], tuple[Any, Any]],
        report: Report,
    ) -> None:
        super().__init__()
        self.policy, self.scoring, self.objective, self.optimizer = policy, scoring, objective, optimizer
        self.report = report
        self.seen = Tally.empty(report.slices)
        self._counted: list[Tensor] | None = None  # by the run that this one goes on with
        self.latest: dict[str, float] = {}  # the newest value of every metric, for callbacks and the summary

    def training_step(self, batch: GroupBatch, batch_index: int) -> Tensor:
        """Loss of one pack over the denominator of its whole optimiser step."""
        found = self.scoring.loss(self.policy, batch, self._loss)
        self._measure(batch, found.logps, self.objective.pairs, self.report.train_domain)
        return self._of_step(found.sum, batch)

    def validation_step(self, batch: GroupBatch, batch_index: int) -> None:
        """Add one pack to what this validation has seen."""
        logps = self.scoring.score(self.policy, batch)
        self._measure(batch, logps, self.report.pairs, self.report.validation_domain)

    def _of_step(self, total: Tensor, batch: GroupBatch) -> Tensor:
        """A pack's total over its step's denominator.

        Lightning divides by the number of packs and averages over ranks; multiplying by both cancels that exactly.
        """
        return total / batch.count_in_step * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _loss(self, scores: GroupScores) -> Totals:
        return self.objective.loss(scores, progress=self.progress)

    @torch.no_grad()
    def _measure(self, batch: GroupBatch, logps: Tensor, pairs: Callable | None, domain: Tensor) -> None:
        scores = table(batch, logps)
        self.seen += tally(
            scores,
            self._loss(scores),
            pairs(scores) if pairs else None,
            domain.to(self.device)[batch.index],
            self.report.slices,
            against_reference=self.objective.uses_reference,
        )

    @property
    def progress(self) -> float:
        """Share of the run's optimiser steps that are done, [0, 1)."""
        return self.global_step / max(1, self.trainer.max_steps)

    def on_train_start(self) -> None:
        """Start counting; go on with what a resumed run had counted since its last row."""
        self.seen = Tally.empty(self.report.slices, self.device)
        if self._counted and self.trainer.is_global_zero:
            self.seen += Tally(*(part.to(self.device) for part in self._counted))
        self._counted = None

    def publish_training(self) -> None:
        """Publish the metrics since the last row. All ranks call it."""
        self.publish(self._take("train"))

    def on_validation_epoch_start(self) -> None:
        """Set the unfinished training counts aside, so that validation does not mix with them."""
        self._set_aside = self.seen
        self.seen = Tally.empty(self.report.slices, self.device)

    def on_validation_epoch_end(self) -> None:
        """Publish the validation metrics."""
        metrics = self._take("val")
        self.seen = self._set_aside
        if not self.trainer.sanity_checking:
            self.publish(metrics)
            self.log_dict({k: v for k, v in metrics.items() if k.count("/") == 1}, logger=False)

    def _take(self, prefix: str) -> dict[str, float]:
        total, self.seen = self._over_ranks(self.seen), Tally.empty(self.report.slices, self.device)
        return total.means(self.report.slices, prefix)

    def _over_ranks(self, seen: Tally) -> Tally:
        return Tally(*(self.trainer.strategy.reduce(part, reduce_op="sum") for part in (seen.sum, seen.count)))

    def publish(self, metrics: dict[str, float]) -> None:
        """Hand metrics of the present optimiser step to every logger and keep the newest values."""
        self.latest.update(metrics)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def configure_optimizers(self) -> dict[str, Any]:
        """Lightning's form of (optimizer, schedule a step)."""
        optimizer, schedule = self.optimizer(self.policy)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_model(self) -> None:
        """Let a strategy that cuts models up do so; Lightning asks whenever it begins something."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.scoring = self.trainer.strategy.cut_up(self.policy, self.scoring)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Steps are what counts: another number of processes cuts one into another number of packs, and a checkpoint
        may have been written while validating."""
        loops = checkpoint["loops"]["fit_loop"]
        packs = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts.update(dict.fromkeys(counts, packs))
        loops.pop("epoch_loop.val_loop.batch_progress", None)
        self._counted = checkpoint["counted"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights only; frozen ones come back with the base model."""
        frozen = {f"policy.{name}" for name, weight in self.policy.named_parameters() if not weight.requires_grad}
        counted = self._over_ranks(self._set_aside if self.trainer.validating else self.seen)
        checkpoint["counted"] = [counted.sum, counted.count]
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name not in frozen}

    @property
    def strict_loading(self) -> bool:
        """A checkpoint without frozen weights is complete."""
        return all(weight.requires_grad for weight in self.policy.parameters())

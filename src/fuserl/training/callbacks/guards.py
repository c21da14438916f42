"""Callbacks that stop a run, or warn, before more time is lost."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from fuserl.errors import FuserlError
from fuserl.terminal import say
from fuserl.training.datamodule import GroupDataModule
from fuserl.training.first_step import check_first_pack
from fuserl.training.group_module import GroupModule
from fuserl.training.zero import WholeDeepSpeed


class FirstStepCheck(Callback):
    """Refuses to train when policy and reference disagree before the first step (traps of masks and dropout)."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def on_train_start(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Score one pack without gradients and compare."""
        if trainer.global_step == 0 and module.objective.uses_reference:
            data: GroupDataModule = trainer.datamodule
            batch = trainer.strategy.batch_to_device(data.pack(0, 0, trainer.global_rank))
            with trainer.precision_plugin.forward_context():
                check_first_pack(module.policy, module.scoring, module.objective, batch, tolerance=self.tolerance)


class NonFiniteStop(Callback):
    """Keeps NaN and infinite gradients from the weights: leaves so many such steps out, and stops at the next one.

    A step that is left out changes neither weights nor moments and is not measured; it counts as done, so that the
    schedule and the order of prompts go on. The norm is that of the gradients summed over all ranks: all decide alike.

    Args:
        skips: steps of the whole run that may be left out.
    """

    def __init__(self, skips: int) -> None:
        self.skips = skips
        self.skipped: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: GroupModule, batch: Any, batch_index: int) -> None:
        """Remember what was measured before a step's first pack."""
        if batch_index % trainer.accumulate_grad_batches == 0:
            self._seen, self._told = module.seen, len(self.skipped)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: GroupModule, optimizer: Any) -> None:
        """Look at the norm of all gradients, which is also what the run logs.

        Raises:
            FuserlError: it is not finite, and no step may be left out any more.
        """
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        if isinstance(trainer.strategy, WholeDeepSpeed) or not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        self._judge(trainer, module, norm.full_tensor() if isinstance(norm, DTensor) else norm, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GroupModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Tell the loggers, in the row of the step. DeepSpeed keeps gradients to itself, and has left the step out already.

        Raises:
            FuserlError: as before a step.
        """
        done = (batch_index + 1) % trainer.accumulate_grad_batches == 0
        if done and isinstance(trainer.strategy, WholeDeepSpeed):
            self._judge(trainer, module, trainer.strategy.norm_of_step(), trainer.global_step - 1)
        if len(self.skipped) > self._told:
            module.publish({"train/skipped_steps": float(len(self.skipped))})

    def _judge(self, trainer: L.Trainer, module: GroupModule, norm: Tensor, step: int) -> None:
        if torch.isfinite(norm):
            module.latest["train/grad_norm"] = float(norm)
        else:
            self._leave_out(trainer, module, step)

    def _leave_out(self, trainer: L.Trainer, module: GroupModule, step: int) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = ", ".join(data.names_of_step(step))
        if len(self.skipped) >= self.skips:
            before = f", and {self.skips} were left out before it" if self.skips else ""
            raise FuserlError(
                f"the gradient of optimiser step {step} is not finite{before}",
                where=f"groups {names}",
                hint="lower `optimizer.lr`, look at these groups' rewards and lengths, train in bf16-mixed or 32-true; "
                f"or run it again with `nonfinite.skips={len(self.skipped) + 1}`, which goes on without this step",
            )
        for weight in module.parameters():
            weight.grad = None  # what has no gradient is left alone by the optimiser: weight, moments, decay
        module.seen = self._seen
        self.skipped.append({"step": step, "groups": data.names_of_step(step)})
        say(
            f"optimiser step {step} is left out ({len(self.skipped)} of {self.skips}): its gradient is not finite; "
            f"groups {names}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What was left out, so that a resumed run counts on."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self.skipped = list(state_dict["skipped"])


class CollapseAlarm(Callback):
    """Warns when the chosen side loses probability, or sampled answers grow, go unfinished, or score worse.

    The loss and the pair accuracy do not warn of a collapse: they improve through it.

    Args:
        chosen_drop: fall of `val/chosen_logps_per_token` (nats a token) against the first validation.
        length_growth: factor of the sampled answers' length.
        unfinished_rise: rise of the share of sampled answers without an end.
        score_drop: fall of the sampled score, as a share of the first one.
        stop: end the run at the first alarm instead of going on.
    """

    def __init__(
        self, *, chosen_drop: float, length_growth: float, unfinished_rise: float, score_drop: float, stop: bool
    ) -> None:
        self.chosen_drop, self.length_growth = chosen_drop, length_growth
        self.unfinished_rise, self.score_drop, self.stop = unfinished_rise, score_drop, stop
        self.first: dict[str, float] = {}
        self.alarms: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: L.Trainer, module: GroupModule) -> None:
        """Compare the newest validation and probe with the first ones."""
        for metric, now in module.latest.items():
            self.first.setdefault(metric, now)
        for what in trainer.strategy.broadcast(self.complaints(module.latest)):  # the first process alone has sampled
            self._raise_alarm(trainer, module, what)

    def complaints(self, latest: dict[str, float]) -> list[str]:
        """One sentence for each sign of a collapse."""

        def change(metric: str) -> tuple[float, float]:
            return self.first.get(metric, math.nan), latest.get(metric, math.nan)

        found = []
        then, now = change("val/chosen_logps_per_token")
        if then - now > self.chosen_drop:
            found.append(f"chosen log-probs fell from {then:.2f} to {now:.2f} nats a token")
        then, now = change("probe/tokens")
        if now > self.length_growth * then:
            found.append(f"sampled answers grew from {then:.1f} to {now:.1f} tokens")
        then, now = change("probe/unfinished")
        if now - then > self.unfinished_rise:
            found.append(f"unfinished answers rose from {then:.0%} to {now:.0%}")
        then, now = change("probe/score")
        if then - now > self.score_drop * abs(then):
            found.append(f"the sampled score fell from {then:.3f} to {now:.3f}")
        return found

    def _raise_alarm(self, trainer: L.Trainer, module: GroupModule, what: str) -> None:
        self.alarms.append({"step": trainer.global_step, "what": what})
        module.publish({"alarms": float(len(self.alarms))})
        module.print(f"ALARM at step {trainer.global_step}: {what}. Lower `optimizer.lr`, or give `objective.nll` "
                     "or `objective.kl` a weight.")  # fmt: skip
        if self.stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The first values, so that a resumed run compares with the same ones."""
        return {"first": self.first, "alarms": self.alarms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self.first, self.alarms = dict(state_dict["first"]), list(state_dict["alarms"])

"""The callbacks of a run, built from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback, RichProgressBar
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.training.callbacks.guards import CollapseAlarm, FirstStepCheck, NonFiniteStop
from fuserl.training.callbacks.resumed import ValidatedAgain
from fuserl.training.callbacks.saving import Best, Checkpoints, StopOnSignal
from fuserl.training.callbacks.watch import Probe, SampleProbe, Throughput
from fuserl.training.checkpoints import Writer
from fuserl.training.flops import flops_of_step
from fuserl.training.folder import RunFolder
from fuserl.training.hardware import peak_flops
from fuserl.training.setup import Setup
from fuserl.training.testing import score_of


@dataclass(frozen=True)
class Watchers:
    """All callbacks, and the ones whose results the summary needs."""

    callbacks: list[Callback]
    throughput: Throughput
    alarm: CollapseAlarm
    nonfinite: NonFiniteStop
    checkpoints: Checkpoints
    val_every: int  # optimiser steps


def watchers(cfg: DictConfig, setup: Setup, folder: RunFolder, writer: Writer) -> Watchers:
    """In the order in which Lightning calls them: the probe samples before the alarm looks; checkpoints come last."""
    plan = setup.prepared.train.plan
    throughput = Throughput(
        plan.tokens_of_step,
        flops_of_step(setup.policy, setup.prepared.train),
        peak_flops(setup.device),
        cfg.trainer.log_every,
    )
    alarm, nonfinite = CollapseAlarm(**cfg.alarm), NonFiniteStop(cfg.nonfinite.skips)
    val_every = min(plan.steps, every(cfg.trainer.val_every, plan.steps))
    checkpoints = _checkpoints(cfg.checkpoint, folder, writer, setup)
    callbacks = [
        FirstStepCheck(_tolerance(cfg, setup)),
        ValidatedAgain(val_every),
        nonfinite,
        throughput,
        *_probe(cfg, setup, folder),
        alarm,
        *([RichProgressBar()] if cfg.trainer.progress_bar else []),
        StopOnSignal(checkpoints),
        checkpoints,
    ]
    return Watchers(callbacks, throughput, alarm, nonfinite, checkpoints, val_every)


def _tolerance(cfg: DictConfig, setup: Setup) -> float:
    """Packs of other shapes round otherwise: more so in half precision."""
    if cfg.trainer.first_step_tolerance != "auto":
        return float(cfg.trainer.first_step_tolerance)
    half = "16" in cfg.trainer.precision or next(setup.policy.parameters()).element_size() < 4
    return 2e-2 if half else 1e-3


def every(value: int | str, steps: int) -> int:
    """Optimiser steps between two; `auto`: eight times a run."""
    return max(1, steps // 8) if value == "auto" else int(value)


def _checkpoints(cfg: DictConfig, folder: RunFolder, writer: Writer, setup: Setup) -> Checkpoints:
    """Raises: FuserlError: the best one is asked for, and nothing is validated."""
    if cfg.best and not setup.prepared.validation:
        raise FuserlError(
            "the best checkpoint is asked for, and there is no validation",
            where="`checkpoint.best`",
            hint="give `data.validation_split`, or `checkpoint.best=null`",
        )
    return Checkpoints(
        folder.checkpoints,
        writer,
        every=every(cfg.every, setup.prepared.train.plan.steps),
        keep=cfg.keep,
        best=Best(cfg.best, cfg.mode) if cfg.best else None,
    )


def _probe(cfg: DictConfig, setup: Setup, folder: RunFolder) -> list[Callback]:
    groups = setup.prepared.validation_groups[: cfg.probe.prompts]
    if not groups:
        return []
    probes = [
        Probe(group.id, group.prompt[-1].content, setup.template.encode_prompt(group.prompt), group.reference)
        for group in groups
    ]
    return [
        SampleProbe(
            probes,
            decode=lambda tokens: setup.tokenizer.decode(tokens, skip_special_tokens=True),
            stop_ids=setup.template.stop_ids,
            path=folder.samples,
            max_new_tokens=cfg.probe.max_new_tokens,
            temperature=cfg.probe.temperature,
            seed=cfg.seed,
            score=score_of(cfg),
        )
    ]

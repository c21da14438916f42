"""The verb `train`: one configuration in, one folder out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.evaluation.answering import summary_of_test, write_answers
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.settings import plain
from fuserl.terminal import say
from fuserl.training import optim, strategies
from fuserl.training.callbacks.build import Watchers, watchers
from fuserl.training.datamodule import GroupDataModule
from fuserl.training.export import export_model
from fuserl.training.folder import RunFolder, digest
from fuserl.training.group_module import GroupModule
from fuserl.training.loggers import MetricsCsv, close_loggers, make_loggers
from fuserl.training.quiet import quiet
from fuserl.training.setup import Setup, data_of
from fuserl.training.summary import card, peak_memory_mb, summarise, write_manifest_of_run
from fuserl.training.testing import groups_of_test, score_of, tested
from fuserl.training.token_module import TokenModule


def train(cfg: DictConfig) -> Path:
    """Train as `conf/train.yaml` says; a finished folder is left alone, an unfinished one is continued.

    Returns:
        The run's folder, with `model/` and `summary.json` in it.

    Raises:
        FuserlError: data, settings or environment cannot work; nothing has been trained then.
    """
    quiet()
    cfg = named(cfg)
    folder = RunFolder(cfg.output)
    folder.open(cfg)
    if folder.finished():
        say(f"{folder.path} is finished already; nothing to do")
        return folder.path
    strategies.keywords(cfg)  # what cannot be had here is told now
    worker, place = "LOCAL_RANK" in os.environ, strategies.Place.of(cfg)
    if not worker and place.nodes > 1:
        raise strategies.started_on_each(place)
    if not worker and place.devices > 1:
        return _launch(cfg, folder)
    if worker:
        _run(cfg, folder)
    else:
        with folder.locked():
            if not folder.finished():  # by a process that held the folder until now
                _run(cfg, folder)
    return folder.path


def named(cfg: DictConfig) -> DictConfig:
    """The same settings, with the folder that they mean."""
    cfg = cfg.copy()
    cfg.output = str(cfg.output or Path("runs") / digest("train", plain(cfg)))
    return cfg


def _launch(cfg: DictConfig, folder: RunFolder) -> Path:
    """Tokenise in this process, then hand the resolved configuration to torchrun; ranks share the reference's work."""
    launch = folder.path / ".launch.yaml"  # with its interpolations, which config.yaml has resolved
    with folder.locked():
        data_of(cfg)
        write_text_atomically(launch, OmegaConf.to_yaml(cfg, resolve=False))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={cfg.trainer.devices}",
        ]
        done = subprocess.run([*command, "-m", "fuserl.training.worker", str(launch)], check=False)
    if done.returncode:
        raise FuserlError(
            f"a training process ended with status {done.returncode}",
            where=str(folder.path),
            hint="its message is above; `resume=auto` (the default) continues from the last checkpoint",
        )
    return folder.path


def _run(cfg: DictConfig, folder: RunFolder) -> None:
    """One rank's share of the run, from its set-up to `summary.json`."""
    score_of(cfg)  # a name that leads nowhere is told now
    test_groups = groups_of_test(cfg)
    setup = Setup(cfg)
    checkpoint = folder.last_checkpoint() if cfg.resume == "auto" else None
    start = int(checkpoint.stem.split("-")[1]) if checkpoint else 0
    csv = MetricsCsv(folder.metrics)
    csv.forget_after(start if checkpoint else -1)
    folder.forget_samples_after(start if checkpoint else -1)
    say(_headline(setup, folder, start))
    if os.environ.get("RANK", "0") == "0":
        write_manifest_of_run(folder, cfg, setup.template, setup.prepared)

    distils = setup.prepared.objective.distillation is not None
    module = (TokenModule if distils else GroupModule)(
        setup.policy,
        setup.scoring,
        setup.prepared.objective,
        _optimizer(cfg, setup.prepared.train.plan.steps),
        setup.report(),
        cfg.trainer.log_every,
    )
    watching = watchers(cfg, setup, folder)
    data = GroupDataModule(
        setup.prepared.train, setup.prepared.validation, start_step=start, num_workers=cfg.trainer.num_workers
    )
    loggers = make_loggers(cfg.logger, folder, plain(cfg), csv.rows)
    done = False
    try:
        trainer = _trainer(cfg, setup, folder, watching, [csv, *loggers])
        _fit(trainer, module, data, checkpoint, watching.val_every)
        setup.put_together(here=trainer.is_global_zero)
        if trainer.is_global_zero:
            _write_results(cfg, setup, folder, csv, watching, trainer, test_groups)
        done = True
    finally:
        close_loggers(loggers, success=done)
        if "LOCAL_RANK" not in os.environ and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # of a strategy that has one for one process, too


def _optimizer(cfg: DictConfig, num_steps: int) -> partial:
    settings: dict[str, Any] = OmegaConf.to_container(cfg.optimizer)  # type: ignore[assignment]
    settings.pop("clip")
    return partial(optim.adamw, num_steps=num_steps, **settings | {"decay": optim.decay_named(settings["decay"])})


def _trainer(cfg: DictConfig, setup: Setup, folder: RunFolder, watching: Watchers, loggers: list) -> L.Trainer:
    plan = setup.prepared.train.plan
    return L.Trainer(
        **strategies.keywords(cfg),
        max_epochs=1,
        max_steps=plan.steps,
        accumulate_grad_batches=plan.packs_per_step,
        gradient_clip_val=cfg.optimizer.clip,
        val_check_interval=watching.val_every * plan.packs_per_step,
        limit_val_batches=1.0 if setup.prepared.validation else 0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers,
        callbacks=watching.callbacks,
        default_root_dir=folder.path,
        enable_progress_bar=cfg.trainer.progress_bar,
        enable_model_summary=False,
        inference_mode=False,
    )


def _fit(
    trainer: L.Trainer, module: GroupModule, data: GroupDataModule, checkpoint: Path | None, val_every: int
) -> None:
    """Validate, train, and validate once more where the last validation was not the end."""
    if data.validation and not checkpoint:
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    if data.validation and data.train.plan.steps % val_every:
        trainer.validate(module, datamodule=data, verbose=False)


def _write_results(
    cfg: DictConfig,
    setup: Setup,
    folder: RunFolder,
    csv: MetricsCsv,
    watching: Watchers,
    trainer: L.Trainer,
    test_groups: Sequence[PromptGroup],
) -> None:
    export_model(setup.policy, setup.tokenizer, folder.model, card=card(cfg, setup.prepared))
    measured = {
        "steps_done": trainer.global_step,
        "data_seconds": setup.data_seconds,
        "train_seconds": watching.throughput.total_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "attention_backend": setup.backend,
        "reference_cache": setup.reference_stats,
        "alarms": watching.alarm.alarms,
        "skipped_steps": watching.nonfinite.skipped,
        "test": _tested(cfg, setup, folder, test_groups),
    }
    summary = summarise(folder, cfg, setup.prepared, csv.rows, measured)
    nll = summary["validation"].get("val/nll", {})
    say(
        f"done: validation nll {nll.get('first', float('nan')):.4f} -> {nll.get('last', float('nan')):.4f} nats a token; {folder.path}"
    )


def _tested(cfg: DictConfig, setup: Setup, folder: RunFolder, groups: Sequence[PromptGroup]) -> dict[str, Any] | None:
    """Answers to the test prompts into `test.jsonl`, and what they come to."""
    if not groups:
        return None
    rows = tested(setup.policy, setup.template, groups, cfg)
    write_answers(folder.test, rows)
    return summary_of_test(rows, cfg.test.split)


def _headline(setup: Setup, folder: RunFolder, start: int) -> str:
    prepared, plan = setup.prepared, setup.prepared.train.plan
    lines = [
        f"{prepared.objective.name}: {len(plan.rows)} prompts, {plan.steps} steps of {plan.packs_per_step} pack(s), "
        f"attention {setup.backend}, writing {folder.path}"
    ]
    if prepared.tau is not None:
        lines.append(f"tau = {prepared.tau:.4g} reward units")
    if prepared.chosen_not_good is not None:
        lines.append(f"{prepared.chosen_not_good:.1%} of the judged pairs prefer an answer that is not good")
    if prepared.fused is not None:
        lines.append(
            f"distributions for {prepared.fused.given:.1%} of the trained tokens, from {prepared.fused.found.folder}"
        )
    lines += [f"left out: {len(ids)} x {why}" for why, ids in prepared.left_out.items()]
    if start:
        lines.append(f"continuing after step {start}")
    return "\n".join(lines)

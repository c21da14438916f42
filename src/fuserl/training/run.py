"""The verb `train`: one configuration in, one folder out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from fuserl.evaluation.answering import summary_of_test, write_answers
from fuserl.records.schema import PromptGroup
from fuserl.settings import plain
from fuserl.terminal import say
from fuserl.training import optim, strategies
from fuserl.training.callbacks.build import Watchers, watchers
from fuserl.training.checkpoints import Writer, last_whole, step_of
from fuserl.training.datamodule import GroupDataModule
from fuserl.training.folder import RunFolder, digest
from fuserl.training.group_module import GroupModule
from fuserl.training.launch import launch
from fuserl.training.loggers import MetricsCsv, close_loggers, make_loggers
from fuserl.training.quiet import quiet
from fuserl.training.setup import Setup, data_of, device_of
from fuserl.training.summary import card, peak_memory_mb, summarise, write_manifest_of_run
from fuserl.training.testing import groups_of_test, score_of, tested
from fuserl.training.token_module import TokenModule
from fuserl.training.troubles import in_words


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
    strategies.keywords(cfg, Writer(behind=False))  # what cannot be had here is told now
    worker, place = "LOCAL_RANK" in os.environ, strategies.Place.of(cfg)
    if not worker and place.nodes > 1:
        raise strategies.started_on_each(place)
    if not worker and place.devices > 1:
        with folder.locked():
            data_of(cfg)  # tokenised once, here
            launch(cfg, folder)
        return folder.path
    with nullcontext() if worker else folder.locked():
        if not folder.finished():  # by a process that held the folder until now
            with strategies.left_as_found(), in_words(cfg.trainer.timeout):
                _run(cfg, folder)
    return folder.path


def named(cfg: DictConfig) -> DictConfig:
    """The same settings, with the folder that they mean."""
    cfg = cfg.copy()
    cfg.output = str(cfg.output or Path("runs") / digest("train", plain(cfg)))
    return cfg


def _run(cfg: DictConfig, folder: RunFolder) -> None:
    """One rank's share of the run, from its set-up to `summary.json`."""
    score_of(cfg)  # a name that leads nowhere is told now
    test_groups = groups_of_test(cfg)
    setup = Setup(cfg)
    checkpoint = _to_go_on_from(cfg, folder)
    start = step_of(checkpoint) if checkpoint else 0
    csv = MetricsCsv(folder.metrics)
    csv.forget_after(start if checkpoint else -1)
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
    )
    writer = Writer(behind=_behind(cfg, setup))
    watching = watchers(cfg, setup, folder, writer)
    validates = checkpoint is None or start % watching.val_every == 0  # before its first step
    folder.forget_samples_after(start - validates)
    data = GroupDataModule(
        setup.prepared.train, setup.prepared.validation, start_step=start, num_workers=cfg.trainer.num_workers
    )
    loggers = make_loggers(cfg.logger, folder, plain(cfg), csv.rows)
    done = False
    try:
        trainer = _trainer(cfg, setup, writer, folder, watching, [csv, *loggers])
        with in_words(cfg.trainer.timeout, trainer):
            _fit(trainer, module, data, checkpoint, watching)
        setup.export(folder.model, card=card(cfg, setup.prepared), first=trainer.is_global_zero)
        test = _tested(cfg, setup, folder, test_groups, first=trainer.is_global_zero)
        if trainer.is_global_zero:
            _write_results(cfg, setup, folder, csv, watching, trainer, test)
        done = True
    finally:
        writer.close()
        close_loggers(loggers, success=done)


def _to_go_on_from(cfg: DictConfig, folder: RunFolder) -> Path | None:
    """The checkpoint that the first process has found to be whole, in all of them."""
    if cfg.resume != "auto":
        return None
    if "LOCAL_RANK" not in os.environ:
        return last_whole(folder.checkpoints)
    strategies.joined(device_of(cfg.trainer.accelerator), strategies.Place.of(cfg).patience)
    first = torch.distributed.get_rank() == 0
    found = [last_whole(folder.checkpoints) if first else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def _behind(cfg: DictConfig, setup: Setup) -> bool:
    """Whether checkpoints are written behind the training: where a GPU trains, main memory has room for a copy."""
    return setup.device.type == "cuda" if cfg.checkpoint.asynchronous == "auto" else cfg.checkpoint.asynchronous


def _optimizer(cfg: DictConfig, num_steps: int) -> partial:
    settings: dict[str, Any] = OmegaConf.to_container(cfg.optimizer)  # type: ignore[assignment]
    settings.pop("clip")
    return partial(optim.adamw, num_steps=num_steps, **settings | {"decay": optim.decay_named(settings["decay"])})


def _trainer(
    cfg: DictConfig, setup: Setup, writer: Writer, folder: RunFolder, watching: Watchers, loggers: list
) -> L.Trainer:
    plan = setup.prepared.train.plan
    return L.Trainer(
        **strategies.keywords(cfg, writer),
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
    trainer: L.Trainer, module: GroupModule, data: GroupDataModule, checkpoint: Path | None, watching: Watchers
) -> None:
    """Validate, train, validate once more where the last validation was not the end; then the best weights, if asked for."""
    if data.validation and not checkpoint:
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    over_before = checkpoint is not None and step_of(checkpoint) == data.train.plan.steps
    if data.validation and (over_before or data.train.plan.steps % watching.val_every):
        trainer.validate(module, datamodule=data, verbose=False)
    watching.checkpoints.settle(trainer)
    if best := watching.checkpoints.best_checkpoint():
        found = trainer.strategy.load_checkpoint(best, weights_only=True)
        if "state_dict" in found:
            trainer.strategy.load_model_state_dict(found, strict=module.strict_loading)


def _write_results(
    cfg: DictConfig,
    setup: Setup,
    folder: RunFolder,
    csv: MetricsCsv,
    watching: Watchers,
    trainer: L.Trainer,
    test: dict[str, Any] | None,
) -> None:
    measured = {
        "steps_done": trainer.global_step,
        "best_step": watching.checkpoints.best_step,
        "data_seconds": setup.data_seconds,
        "train_seconds": watching.throughput.total_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "attention_backend": setup.backend,
        "reference_cache": setup.reference_stats,
        "alarms": watching.alarm.alarms,
        "skipped_steps": watching.nonfinite.skipped,
        "test": test,
    }
    summary = summarise(folder, cfg, setup.prepared, csv.rows, measured)
    nll = summary["validation"].get("val/nll", {})
    say(
        f"done: validation nll {nll.get('first', float('nan')):.4f} -> {nll.get('last', float('nan')):.4f} nats a token; {folder.path}"
    )


def _tested(
    cfg: DictConfig, setup: Setup, folder: RunFolder, groups: Sequence[PromptGroup], *, first: bool
) -> dict[str, Any] | None:
    """Answers to the test prompts into `test.jsonl`, and what they come to, in the first process."""
    if not groups or not (first or setup.in_pieces):
        return None
    rows = tested(setup.policy, setup.template, groups, cfg, first=first)
    if not first:
        return None
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

"""The verb `plan`: what a run will need, in seconds, before anything is loaded or computed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fuserl.errors import FuserlError
from fuserl.models.checkpointing import WAYS
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import plain
from fuserl.training.estimate import Amounts, Time, amounts_of, as_dict, time_of
from fuserl.training.folder import digest
from fuserl.training.hardware import Hardware
from fuserl.training.memory import Memory, Model, largest_pack, memory_of, rounded
from fuserl.training.prepare import Prepared
from fuserl.training.quiet import quiet
from fuserl.training.setup import data_of
from fuserl.training.summary import tokens_naive, versions
from fuserl.training.ways_out import Way, ways_out

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "activations": "activations",
    "head": "logits and head",
    "kept": "holes of the heap",
    "buckets": "gradients in flight between devices",
    "overhead": "libraries and context",
}
DEVICES = {"gpu": "cuda", "cpu": "cpu"}  # an accelerator in torch's words
GIB, HOUR = 2**30, 3600


@dataclass(frozen=True)
class Findings:
    """Everything that is printed and written."""

    amounts: Amounts
    memory: dict[str, Memory]  # activation checkpointing -> bytes of one device
    time: Time
    fits: bool
    hardware: Hardware
    num_parameters: int
    num_trained: int
    pack_tokens: int
    uses_reference: bool
    ways: Sequence[Way] = ()  # out, where it does not fit
    data_seconds: float = 0.0  # that reading and tokenising took


def plan(cfg: DictConfig) -> Findings:
    """Print what the run that these settings describe would take; with `output`, write it down as well.

    Raises:
        FuserlError: data or settings cannot work, as `fuserl train` would find.
    """
    quiet()
    hardware = Hardware.of(cfg.hardware)
    if not 0 < cfg.plan.mfu <= 1:
        raise FuserlError(
            f"{cfg.plan.mfu} is no share of a rate", where="`plan.mfu`", hint="give a number above 0, at most 1"
        )
    started = time.perf_counter()
    *_, prepared = data_of(cfg, DEVICES[hardware.accelerator])
    seconds = time.perf_counter() - started
    found = replace(findings(cfg, prepared, hardware), data_seconds=seconds)
    show(cfg, prepared, found)
    if not found.fits:  # takes longest, so what is known is told first
        found = replace(found, ways=ways_out(cfg, prepared, hardware, found.memory[cfg.target.checkpointing].peak))
        show_ways(found)
    if cfg.output:
        write(cfg, prepared, found, Path(cfg.output))
    return found


def findings(cfg: DictConfig, prepared: Prepared, hardware: Hardware) -> Findings:
    """Reckon, for every way of activation checkpointing."""
    pack = largest_pack(rounded(cfg, prepared.train, hardware), padded=cfg.trainer.packing == "padded")
    model = Model(cfg, chosen := cfg.target.checkpointing)
    memory = {way: memory_of(cfg, model if way == chosen else Model(cfg, way), prepared, hardware) for way in WAYS}
    amounts = amounts_of(cfg, model, prepared, tokens_naive(prepared))
    rate = hardware.rate(cfg.trainer.precision, model.dtype)
    time = time_of(amounts, rate, cfg.plan.mfu, prepared.train.plan.ranks)
    fits = memory[chosen].peak <= hardware.memory
    return Findings(
        amounts, memory, time, fits, hardware, model.num_parameters, model.num_trained, len(pack.input_ids),
        prepared.objective.uses_reference,
    )  # fmt: skip


def show(cfg: DictConfig, prepared: Prepared, found: Findings) -> None:
    """Tables on standard output."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for left, ids in prepared.left_out.items():
        console.print(f"left out: {len(ids)} x {left}")
    console.print(_table("run", _run_rows(cfg, prepared, found)))
    console.print(_table("work", _work_rows(found)))
    console.print(_memory_table(cfg, found))
    console.print(_table("time", _time_rows(cfg, found)))
    console.print(_verdict(cfg, found))


def show_ways(found: Findings) -> None:
    """What to change."""
    rows = [(way.override, f"{_gib(way.peak)} GiB{', fits' if way.fits else ''}", way.why) for way in found.ways]
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_table("ways out, each on top of those before it", rows))


def _run_rows(cfg: DictConfig, prepared: Prepared, found: Findings) -> list[tuple[str, str, str]]:
    amounts, run = found.amounts, prepared.train.plan
    trained = "all trained" if found.num_trained == found.num_parameters else f"{found.num_trained:,} trained"
    return [
        ("data", str(cfg.data.path), f"{amounts.prompts:,} prompts, {amounts.responses:,} responses"),
        ("target", str(cfg.target.path), f"{found.num_parameters:,} parameters, {trained}"),
        (
            "objective",
            prepared.objective.name,
            "with a reference" if prepared.objective.uses_reference else "no reference",
        ),
        (
            "hardware",
            f"{run.ranks} x {found.hardware.name}",
            f"{cfg.trainer.precision}, weights {cfg.target.dtype}",
        ),
        ("steps", f"{amounts.steps:,}", f"of {cfg.batch_size} prompts, in {run.packs_per_step} pack(s) on each device"),
        ("packs", f"{amounts.packs:,}", f"the largest has {found.pack_tokens:,} tokens"),
    ]


def _work_rows(found: Findings) -> list[tuple[str, str, str]]:
    amounts = found.amounts
    saved = amounts.tokens_naive / max(1, amounts.tokens_computed)
    return [
        ("tokens computed", f"{amounts.tokens_computed:,}", "prompts once, unique responses"),
        ("tokens naive", f"{amounts.tokens_naive:,}", f"separate forwards: {saved:.2f} times as many"),
        ("tokens through the head", f"{amounts.tokens_trained:,}", ""),
        ("useful FLOPs", f"{amounts.useful_flops:.3g}", "forward and backward, attended area only"),
        (
            "computed again",
            f"{amounts.extra_flops:.3g}",
            "by full checkpointing, padded forwards, or distill's head in backward",
        ),
        ("reference", f"{amounts.reference_flops:.3g}", "once, where nothing is cached"),
        ("validation", f"{amounts.validation_flops:.3g}", "without sampled answers"),
        ("token store on disk", f"{_gib(amounts.token_store_bytes)} GiB", ""),
        ("reference cache on disk", f"{_gib(amounts.reference_cache_bytes)} GiB", "at most"),
        ("a checkpoint on disk", f"{_gib(amounts.checkpoint_bytes)} GiB", "trained weights and two moments"),
        (
            "checkpoints on disk",
            f"{_gib(amounts.checkpoints_bytes)} GiB",
            "at a time, with the one that is being written",
        ),
        ("`model/` on disk", f"{_gib(amounts.model_bytes)} GiB", ""),
    ]


def _memory_table(cfg: DictConfig, found: Findings) -> Table:
    table = Table(
        title="memory of one device, GiB, by activation checkpointing",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("")
    for way in found.memory:
        table.add_column(f"{way}{' (chosen)' if way == cfg.target.checkpointing else ''}", justify="right")
    columns = list(found.memory.values())
    for name, label in PARTS.items():
        table.add_row(label, *(_gib(getattr(memory, name)) for memory in columns))
    table.add_row("a step, all together", *(_gib(memory.step) for memory in columns))
    table.add_row("the run's peak", *(_gib(memory.peak) for memory in columns))
    return table


def _time_rows(cfg: DictConfig, found: Findings) -> list[tuple[str, str, str]]:
    time = found.time
    at = f"at {cfg.plan.mfu:.0%} of the peak rate (`plan.mfu`, assumed), on {cfg.trainer.devices * cfg.trainer.nodes} device(s)"
    return [
        ("reading and tokenising", _hours(found.data_seconds), "here, just now; the run finds the tokens in the cache"),
        ("training", _hours(time.training), at),
        ("reference", _hours(time.reference), "where nothing is cached"),
        ("validation", _hours(time.validation), "without sampled answers"),
    ]


def _verdict(cfg: DictConfig, found: Findings) -> str:
    peak, has = found.memory[cfg.target.checkpointing].peak, found.hardware.memory
    text = f"{_gib(peak)} of {_gib(has)} GiB on {found.hardware.name}"
    return f"fits: {text}" if found.fits else f"DOES NOT FIT: {text}"


def write(cfg: DictConfig, prepared: Prepared, found: Findings, folder: Path) -> None:
    """`plan.json`, and `manifest.json` with settings, inputs by content and versions.

    Raises:
        FuserlError: the folder cannot be written.
    """
    chosen = cfg.target.checkpointing
    report: dict[str, Any] = {
        **as_dict(found.amounts),
        "parameters": found.num_parameters,
        "parameters_trained": found.num_trained,
        "largest_pack_tokens": found.pack_tokens,
        "packs_per_step": prepared.train.plan.packs_per_step,
        "memory_bytes": as_dict(found.memory[chosen]),
        "memory_bytes_by_checkpointing": {way: as_dict(memory) for way, memory in found.memory.items()},
        "hardware": as_dict(found.hardware),
        "fits": found.fits,
        "mfu": cfg.plan.mfu,
        "seconds": as_dict(found.time),
        "ways_out": [as_dict(way) for way in found.ways],
    }
    settings = plain(cfg)
    manifest = {
        "verb": "plan",
        "digest": digest("plan", settings),
        "settings": settings,
        "inputs": {"data": str(cfg.data.path), "tokens": prepared.train.store.digest, "target": str(cfg.target.path)},
        "left_out": prepared.left_out,
        "versions": versions(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("plan.json", report), ("manifest.json", manifest)):
            write_text_atomically(folder / name, json.dumps(content, indent=1, ensure_ascii=False))
    except OSError as error:
        raise FuserlError(
            f"the output folder cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="give another `output=DIR`",
        ) from error


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}" if size >= GIB / 100 else f"{size / GIB:.1g}"


def _hours(seconds: float) -> str:
    return f"{seconds / HOUR:,.2f} h" if seconds >= HOUR / 10 else f"{seconds:.1f} s"


def _table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    table = Table("", "", "", title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table

"""What a run leaves behind for people and for `compare`: summary.json, manifest.json, the model card."""

from __future__ import annotations

import json
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from fuserl.records.manifest import write_text_atomically
from fuserl.settings import plain
from fuserl.tokens.plan import chosen_at
from fuserl.tokens.templates import Template
from fuserl.training.folder import RunFolder, digest
from fuserl.training.prepare import Prepared

PACKAGES = ("fuserl", "torch", "lightning", "transformers", "tokenizers", "datasets", "peft", "hydra-core")

HIGHER_IS_BETTER = ("val/accuracy", "val/margin", "val/chosen_logps", "val/chosen_logps_per_token")


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers."""

    def one(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {"python": platform.python_version()} | {name: one(name) for name in PACKAGES}


def write_manifest_of_run(folder: RunFolder, cfg: DictConfig, template: Template, prepared: Prepared) -> None:
    """Verb, settings, inputs by content, versions, hardware."""
    store = prepared.train.store
    manifest = {
        "verb": "train",
        "digest": digest("train", plain(cfg)),
        "command": sys.argv,
        "steps": prepared.train.plan.steps,
        "inputs": {"data": str(cfg.data.path), "tokens": store.digest, "target": str(cfg.target.path)}
        | ({} if prepared.fused is None else {"distributions": prepared.fused.identity()["digest"]}),
        "template_hash": template.hash,
        "sources": list(prepared.slices.sources),
        "domains": list(prepared.slices.domains),
        "left_out": prepared.left_out,
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": torch.get_num_threads(), "gpu": gpu_name()},
    }
    write_text_atomically(folder.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))


def gpu_name() -> str | None:
    """Of the first device."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def peak_memory_mb() -> float:
    """Of the GPU where one is used, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def source_weights(prepared: Prepared) -> dict[str, float]:
    """Each source's mean share of the pull upwards over the training prompts; sums to 1."""
    plan, store = prepared.train.plan, prepared.train.store
    source = np.asarray(store.source)[plan.rows]
    total = prepared.influence.sum()
    return {
        name: float(prepared.influence[source == index].sum() / max(total, 1e-300))
        for index, name in enumerate(prepared.slices.sources)
    }


def weight_entropy(prepared: Prepared) -> float:
    """Mean entropy (nats) of the weights over a prompt's responses: 0 one response, ln n when n are alike."""
    shares = prepared.influence
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return float((-(shares * logs)).sum(axis=1).mean())


def summarise(
    folder: RunFolder,
    cfg: DictConfig,
    prepared: Prepared,
    rows: dict[int, dict[str, Any]],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Write `summary.json`, the last file of a run: its presence says that the run is complete.

    Args:
        rows: of `metrics.csv`, by step.
        measured: what only the run itself knows (seconds, memory, cache, alarms).
    """
    plan = prepared.train.plan
    losses = [float(row["train/loss"]) for _, row in sorted(rows.items()) if row.get("train/loss") not in (None, "")]
    tokens = sum(plan.tokens_of_step(step) for step in range(plan.steps))
    summary = {
        "objective": prepared.objective.name,
        "seed": cfg.seed,
        "steps": plan.steps,
        "prompts": len(plan.rows),
        "responses": int(prepared.train.used[plan.rows].sum()),
        "tau": prepared.tau,
        "distributions": None if prepared.fused is None else prepared.fused.identity(),
        "weight_by_source": source_weights(prepared),
        "weight_entropy": weight_entropy(prepared),
        "pairs_chosen_not_good": prepared.chosen_not_good,
        "tokens_computed": tokens,
        "tokens_naive": tokens_naive(prepared),
        "tokens_per_second": tokens / max(measured["train_seconds"], 1e-9),
        "first_train_loss": losses[0] if losses else None,
        "last_train_loss": losses[-1] if losses else None,
        "validation": validation_summary(rows),
        "left_out": {why: len(ids) for why, ids in prepared.left_out.items()},
        **measured,
    }
    write_text_atomically(folder.summary, json.dumps(summary, indent=1, ensure_ascii=False))
    return summary


def tokens_naive(prepared: Prepared) -> int:
    """Tokens of padding-free separate forwards over the whole run: every response carries its own prompt."""
    plan, split = prepared.train.plan, prepared.train
    used = split.used
    each = (used * (np.asarray(split.store.prompt_tokens)[:, None] + np.asarray(split.store.branch_tokens))).sum(axis=1)
    return int(sum(each[plan.rows[chosen_at(plan, step)]].sum() for step in range(plan.steps)))


def validation_summary(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """First, last and best value of the whole-set validation metrics, with the step of the best."""
    series: dict[str, list[tuple[int, float]]] = {}
    for step, row in sorted(rows.items()):
        for name, value in row.items():
            if name.startswith("val/") and name.count("/") == 1 and value not in (None, ""):
                series.setdefault(name, []).append((step, float(value)))
    summary = {}
    for name, points in series.items():
        better = max if name in HIGHER_IS_BETTER else min
        step, value = better(points, key=lambda point: point[1])
        summary[name] = {"first": points[0][1], "last": points[-1][1], "best": value, "best_step": step}
    return summary


def card(cfg: DictConfig, prepared: Prepared) -> str:
    """A model card with lineage."""
    sources = "\n".join(f"- {name}: {share:.1%} of the weight" for name, share in source_weights(prepared).items())
    return (
        f"---\nlibrary_name: transformers\ntags: [fuserl, {prepared.objective.name}]\n---\n\n"
        f"# {Path(str(cfg.target.path)).name} trained with {prepared.objective.name}\n\n"
        f"{prepared.train.plan.steps} optimiser steps on {len(prepared.train.plan.rows)} prompts of `{Path(str(cfg.data.path)).name}`, "
        f"seed {cfg.seed}. Settings are in `config.yaml`, measurements in `summary.json` beside this folder.\n\n"
        f"Sources\n{sources}\n"
    )

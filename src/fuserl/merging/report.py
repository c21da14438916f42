"""What a merge leaves for people: coefficients of every tensor, a table, a card with lineage, `manifest.json`."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fuserl import settings
from fuserl.merging.checkpoint import Weights
from fuserl.merging.folder import FREE, stamp

PACKAGES = ("fuserl", "torch", "transformers", "safetensors", "peft", "mergekit")
Coefficients = Mapping[str, Sequence[float] | None]  # tensor -> of each expert


def write_coefficients(path: Path, coefficients: Coefficients, labels: Sequence[str]) -> None:
    """`coefficients.csv`: a row a tensor, a column an expert; empty where a method has none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tensor", *labels])
        for name, values in sorted(coefficients.items()):
            rows.writerow([name, *([""] * len(labels) if values is None else (f"{value:.9g}" for value in values))])


def summary_of(coefficients: Coefficients, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Expert -> mean, smallest and largest coefficient over the tensors; empty where the method has none."""
    given = [values for values in coefficients.values() if values is not None]
    if not given:
        return {}
    columns = zip(*given, strict=True)
    return {
        label: {"mean": sum(column) / len(column), "min": min(column), "max": max(column)}
        for label, column in zip(labels, columns, strict=True)
    }


def table_of(summary: Mapping[str, Mapping[str, float]], *, title: str, num_tensors: int) -> Table:
    """Of the coefficients, for the terminal."""
    table = Table(title=title, caption=f"coefficients over {num_tensors:,} tensors, each tensor counted once")
    table.add_column("expert")
    for name in ("mean", "min", "max"):
        table.add_column(name, justify="right")
    for label, row in summary.items():
        table.add_row(label, *(f"{row[name]:.4f}" for name in ("mean", "min", "max")))
    return table


def lineage(models: Sequence[Weights], digests: Mapping[Path, str]) -> dict[str, dict[str, Any]]:
    """Model -> where it was, its digest, and its files with theirs."""
    found = {}
    for model in models:
        files = {str(file): stamp(file) | {"sha256": digests[file]} for file in model.files()}
        lines = sorted(f"{Path(name).name} {known['sha256']}" for name, known in files.items())
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        found[model.label] = {"path": str(model.folder), "digest": digest, "files": files}
    return found


def manifest(config: Mapping[str, Any], models: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Verb, settings, inputs by content, versions, hardware."""
    return json.dumps(
        {
            "verb": "merge",
            "digest": settings.digest("merge", config, FREE),
            "settings": settings.decisive(config, FREE),
            "models": models,
            **measured,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "hardware": {"machine": platform.machine(), "cores": torch.get_num_threads()},
        },
        indent=1,
        ensure_ascii=False,
        default=str,
    )


def card(config: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """A model card: from what, how, and with which weights."""
    (base, *experts) = models
    chosen = {key: value for key, value in config["merge"].items() if key != "method"}
    lines = "\n".join(f"- {key}: `{json.dumps(value)}`" for key, value in sorted(chosen.items()))
    parents = "\n".join(f"| {_cell(one)} | {role} | `{models[one]['digest'][:16]}` |" for one, role in [
        (base, "base"), *((expert, "expert") for expert in experts)])  # fmt: skip
    tags = json.dumps(["merge", "fuserl", str(name)])
    return (
        f"---\nlibrary_name: transformers\ntags: {tags}\nbase_model: {json.dumps([base, *experts])}\n---\n\n"
        f"# {_cell(base)} with {len(experts)} experts merged into it by {name}\n\n"
        f"| model | role | SHA-256 of its files |\n|---|---|---|\n{parents}\n\nSettings\n\n{lines}\n\n"
        "Configuration, tokenizer and chat template are the base's. `coefficients.csv` has each expert's weight in every "
        "tensor, `manifest.json` the digests of all files, `config.yaml` the settings.\n"
    )


def peak_memory_mb() -> float:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cell(text: str) -> str:
    """A name in Markdown: no mark of it, no line's end."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]|<>#" else sign for sign in " ".join(text.split()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"

"""The verb `doctor`: what this machine can do, checked rather than guessed."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fuserl.models.attention import backends
from fuserl.training.summary import gpu_name, versions

EXTRAS = {
    "vllm": "vllm",
    "flash_attn": "flash",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "mergekit": "merge",
    "lm_eval": "eval",
}


def doctor(cfg: DictConfig) -> None:
    """Print devices, attention kernels (each checked numerically), packages, W&B mode and the cache."""
    console = Console(highlight=False)
    console.print(_table("machine", _machine(cfg)))
    rows = [(name, "yes" if found.ok else "no", found.why) for name, found in backends().items()]
    console.print(_table("attention kernels", rows))
    console.print(_table("packages", [(name, number, "") for name, number in versions().items()]))
    extras = [
        (package, "yes" if find_spec(package) else "no", "" if find_spec(package) else f"pip install 'fuserl[{extra}]'")
        for package, extra in EXTRAS.items()
    ]
    console.print(_table("optional packages", extras))


def _machine(cfg: DictConfig) -> list[tuple[str, str, str]]:
    cache = Path(cfg.cache).expanduser()
    files = [file for file in cache.rglob("*") if file.is_file()] if cache.exists() else []
    size = sum(file.stat().st_size for file in files) / 2**20
    key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    return [
        ("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used", ""),
        ("GPU", gpu_name() or "none", "" if gpu_name() else "everything runs on the processor"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here", ""),
        ("W&B", os.environ.get("WANDB_MODE", "online" if key else "offline"), "`logger=csv` turns it off"),
        ("cache", str(cache), f"{size:.1f} MiB; delete the folder to empty it"),
    ]


def _table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    table = Table("", "", "", title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table

"""The verb `doctor`: what this machine can do, checked rather than guessed."""

from __future__ import annotations

import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fuserl.errors import FuserlError
from fuserl.models.kernels import backends
from fuserl.models.reference_folder import DAY, Kept, caches, prune
from fuserl.reporting.window import mode
from fuserl.rewards.sandbox import HINT, bubblewrap
from fuserl.training.summary import gpu_name, versions

EXTRAS = {
    "vllm": "vllm",
    "flash_attn": "flash",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "submitit": "slurm",
    "optuna": "optuna",
    "mergekit": "merge",
    "lm_eval": "eval",
}
LISTED = 8  # caches, the last used first


def doctor(cfg: DictConfig) -> None:
    """Print devices, attention kernels (each checked numerically), the sandbox (tried from inside), packages, W&B mode and the caches.

    Raises:
        FuserlError: `prune_older_than_days` is less than a day, in which a running job may need what it would delete.
    """
    console = Console(highlight=False, markup=False)  # `fuserl[flash]` is no markup
    cache = Path(cfg.cache).expanduser()
    if cfg.prune_older_than_days is not None:
        console.print(_pruned(cache, cfg.prune_older_than_days))
    console.print(_table("machine", _machine()))
    rows = [(name, "yes" if found.ok else "no", found.why) for name, found in backends().items()]
    console.print(_table("attention kernels", rows))
    console.print(_table("sandbox of `reward=code`", _sandbox()))
    console.print(_table("packages", [(name, number, "") for name, number in versions().items()]))
    extras = [
        (package, "yes" if find_spec(package) else "no", "" if find_spec(package) else f"pip install 'fuserl[{extra}]'")
        for package, extra in EXTRAS.items()
    ]
    console.print(_table("optional packages", extras))
    console.print(_table("caches", _caches(cache)))


def _machine() -> list[tuple[str, str, str]]:
    return [
        ("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used", ""),
        ("GPU", gpu_name() or "none", "" if gpu_name() else "everything runs on the processor"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here", ""),
        ("W&B", mode(), "`logger=csv` turns it off"),
    ]


def _sandbox() -> list[tuple[str, str, str]]:
    """Tried by a program that looks for ways out."""
    binary, why = bubblewrap()
    rows = [("bubblewrap", "yes" if binary else "no", why)]
    return rows if binary else [*rows, ("", "", HINT)]


def _pruned(cache: Path, days: Any) -> str:
    if isinstance(days, bool) or not isinstance(days, int | float) or not days >= 1:
        raise FuserlError(
            f"{days} is no number of days after which a cache is old",
            where="`prune_older_than_days`",
            hint="give 1 or more; to empty the cache, delete its folder while nothing runs",
        )
    stores = [folder for folder in _stores(cache) if folder.stat().st_mtime < time.time() - days * DAY]
    size = sum(_size(folder) for folder in stores)
    for folder in stores:
        shutil.rmtree(folder, ignore_errors=True)
    references = prune(cache / "reference", days)
    size += sum(kept.size for kept in references)
    return f"deleted {len(references)} reference caches and {len(stores)} token stores, {_mib(size)}"


def _caches(cache: Path) -> list[tuple[str, str, str]]:
    """Where they are, how large, and the reference caches one by one."""
    found, stores = caches(cache / "reference"), _stores(cache)
    rows = [
        ("folder", str(cache), "`fuserl doctor prune_older_than_days=30` deletes what is not used"),
        ("tokens", f"{len(stores)} data sets, {_mib(sum(map(_size, stores)))}", ""),
        ("reference", f"{len(found)} caches, {_mib(sum(kept.size for kept in found))}", ""),
    ]
    more = [("", f"and {len(found) - LISTED} more", "")] if len(found) > LISTED else []
    return [*rows, *map(_row, found[:LISTED]), *more]


def _row(kept: Kept) -> tuple[str, str, str]:
    age = (time.time() - kept.last_used) / DAY
    used = "in use now" if kept.in_use else "used today" if age < 1 else f"last used {age:.0f} days ago"
    if kept.entries is None:
        return "", f"{kept.path.stem[:8]}: damaged or of another version, {_mib(kept.size)}", used
    about = f"{kept.about['model'] or kept.path.stem[:8]}: {kept.entries:,} entries, {_mib(kept.size)}"
    return "", about, f"{used}; {kept.about['dtype']}, {kept.about['backend']}"


def _stores(cache: Path) -> list[Path]:
    """Tokenised data sets, with what a killed writer left."""
    folder = cache / "tokens"
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    table = Table("", "", "", title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table

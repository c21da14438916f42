"""W&B as a window: whether it is online, what never leaves with a run, offline records that a later one replaces."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

QUIET = {  # nothing of the machine's environment, repository or terminal leaves with the run
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_save_requirements": False,
}
HOSTS = {"api.wandb.ai", "api.forge.coreweave.com"}  # of W&B itself
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
HIDDEN = "(hidden)"
SHORTEST_SECRET = 8  # signs; a shorter value of a secret variable is a switch such as `1`


def mode() -> str:
    """`WANDB_MODE` where it is set; else online with a key, offline without."""
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    given = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({given} & known.keys() if given else HOSTS & known.keys())


def without_secrets(config: Any) -> Any:
    """Plain data in which no string holds the value of an environment variable that is named like a secret."""
    secrets = [v for name, v in os.environ.items() if SECRET.search(name) and len(v) >= SHORTEST_SECRET]
    return _hidden(config, secrets)


def _hidden(node: Any, secrets: list[str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _hidden(value, secrets) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_hidden(value, secrets) for value in node]
    return HIDDEN if isinstance(node, str) and any(secret in node for secret in secrets) else node


def set_aside(folder: Path, run_id: str) -> None:
    """Offline records of earlier starts go where `wandb sync` does not look: the new one holds their rows."""
    for older in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        aside = older.parent / "superseded"
        aside.mkdir(exist_ok=True)
        names = chain([older.name], (f"{older.name}-{number}" for number in count(2)))
        older.rename(next(aside / name for name in names if not (aside / name).exists()))  # two may begin in one second

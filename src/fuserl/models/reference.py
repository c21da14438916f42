"""Reference log-probs: computed once for every (weights, dtype, kernel, tokens), shared by all runs, grown by response.

An entry is addressed by content alone: nothing of the optimiser or the loss enters its key, and everything that could
change the number does. SQLite keeps it whole under kills and several processes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fuserl.errors import FuserlError
from fuserl.models.scoring import causal_lm, score_batch
from fuserl.tokens.collate import collate
from fuserl.tokens.plan import GroupCosts, first_fit
from fuserl.tokens.store import TokenStore

LAYOUT = 1  # raise it when a stored number changes its meaning


def response_key(prompt: np.ndarray, branch: np.ndarray, untrained: int) -> bytes:
    """Address of a response: its prompt's and its own token ids, and where its trained part begins."""
    content = np.asarray(prompt, np.int32).tobytes() + b"|" + np.asarray(branch, np.int32).tobytes()
    return hashlib.sha256(content + b"|%d,%d" % (len(prompt), untrained)).digest()


def weights_digest(model: nn.Module) -> str:
    """Of the weights the reference would use: names, shapes, dtypes, bytes. LoRA adapters do not count."""
    content = hashlib.sha256(_forward_config(model).encode())
    with frozen(model):
        for name, weight in sorted(model.named_parameters()):
            if ".lora_" in name or "lora_magnitude" in name:
                continue
            plain = name.replace("base_model.model.", "").replace(".base_layer", "")
            content.update(f"{plain}{tuple(weight.shape)}{weight.dtype}".encode())
            content.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:24]


def _forward_config(model: Any) -> str:
    """The configuration that decides the forward: rope, norms, caps; not where the model came from or its dtype."""
    free = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
    config = causal_lm(model).config.to_diff_dict()
    return json.dumps({key: value for key, value in config.items() if key not in free}, sort_keys=True, default=str)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """The model without its adapters: the one it was before training, as adapters of a run always start fresh."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        yield


class ReferenceCache:
    """Sums (nats) and token counts by content, in one SQLite file for each (weights, dtype, kernel)."""

    def __init__(self, folder: Path, *, weights: str, dtype: str, backend: str) -> None:
        name = hashlib.sha256(f"{LAYOUT}|{weights}|{dtype}|{backend}".encode()).hexdigest()[:24]
        self.path = Path(folder) / f"{name}.sqlite"
        self.hits, self.misses, self.seconds = 0, 0, 0.0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = self._open()
        except (OSError, sqlite3.Error) as error:
            raise FuserlError(
                f"the reference cache cannot be opened ({error})",
                where=str(self.path),
                hint="delete the file (it is computed again), or give another folder with `cache=DIR`",
            ) from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=120, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, logps REAL, num_tokens INTEGER) WITHOUT ROWID"
        )
        return database

    def get(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        """What is there of these keys."""
        found: dict[bytes, float] = {}
        wanted = list(keys)
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(self.database.execute(f"SELECT key, logps FROM logps WHERE key IN ({marks})", part))
        return found

    def put(self, rows: Iterable[tuple[bytes, float, int]]) -> None:
        """Add entries in one transaction; the first writer of a key stands."""
        self.database.execute("BEGIN IMMEDIATE")
        try:
            self.database.executemany("INSERT OR IGNORE INTO logps VALUES (?, ?, ?)", rows)
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self.database.close()


@torch.no_grad()
def fill(
    model: Any,
    store: TokenStore,
    used: np.ndarray,
    cache: ReferenceCache,
    *,
    max_tokens: int,
    backend: str,
    truncate: int | None = None,
    score: Callable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Reference log-probs [N, K] (nats, summed; 0 where not used), computing only what the cache lacks.

    Args:
        used: [N, K], which responses.
        max_tokens: of one pack (a larger group has a pack of its own).
        score: how to score a batch, where not packed.
        progress: told (packs done, packs in all).
    """
    started = time.perf_counter()
    score = score or (lambda m, b: score_batch(m, b, backend=backend))
    device = next(model.parameters()).device
    keys = _keys(store, used, truncate)
    known = cache.get(set(keys.values()))
    missing = np.zeros_like(used, dtype=bool)
    for (row, column), key in keys.items():
        missing[row, column] = key not in known
    cache.hits += sum(key in known for key in set(keys.values()))
    rows = np.flatnonzero(missing.any(axis=1))
    packs = (
        first_fit(tokens := GroupCosts.of(store, missing, rows, truncate).tokens, max(max_tokens, int(tokens.max())))
        if len(rows)
        else []
    )
    was_training = model.training
    model.eval()
    with frozen(model):
        for number, members in enumerate(packs):
            groups = rows[members].tolist()
            batch = collate(store, groups, missing, truncate=truncate)
            logps = score(model, batch.to(device)).double().cpu()
            fresh = {}
            for group, table in zip(groups, batch.row.tolist(), strict=True):
                for column, unique in enumerate(table):
                    if unique >= 0:
                        count = int(store.num_tokens[group, column])
                        fresh[keys[group, column]] = (float(logps[unique]), count)
            cache.put([(key, value, count) for key, (value, count) in fresh.items()])
            known.update({key: value for key, (value, _) in fresh.items()})
            cache.misses += len(fresh)
            if progress:
                progress(number + 1, len(packs))
    model.train(was_training)
    filled = np.zeros(used.shape)
    for (row, column), key in keys.items():
        filled[row, column] = known[key]
    cache.seconds += time.perf_counter() - started
    return filled


def _keys(store: TokenStore, used: np.ndarray, truncate: int | None) -> dict[tuple[int, int], bytes]:
    keys = {}
    for row, column in zip(*(axis.tolist() for axis in np.nonzero(used & np.asarray(store.valid))), strict=True):
        prompt = store.prompt(row)
        branch = store.branch(row, column)[: None if truncate is None else truncate - len(prompt)]
        keys[int(row), int(column)] = response_key(prompt, branch, int(store.untrained[row, column]))
    return keys

"""Reference log-probs: computed once for every (weights, dtype, kernel, tokens), shared by all runs, grown by response.

An entry is addressed by content alone: nothing of the optimiser or the loss enters its key, and everything that could
change the number does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fuserl.models.reference_cache import Entry, ReferenceCache, explained
from fuserl.models.scoring import causal_lm, score_batch
from fuserl.models.sharding import is_sharded, of_each_in_turn
from fuserl.tokens.collate import collate
from fuserl.tokens.plan import GroupCosts, next_fit
from fuserl.tokens.store import TokenStore, response_key

POLL = 0.2  # seconds between two looks at what other processes compute


def weights_digest(model: nn.Module) -> str:
    """Of the weights the reference would use: names, shapes, dtypes, bytes. LoRA adapters do not count.

    All bytes are read every time, by several threads (about 2 GB/s each): a digest that trusts dates of files would be
    wrong after the first copy. Of a model that is cut up, all processes call it and get the same.
    """
    with frozen(model):
        weights = {
            plain_name(name): weight
            for name, weight in model.state_dict().items()
            if not any(part in name for part in (".lora_", ".modules_to_save."))
        }
    if is_sharded(model):
        digests = of_each_in_turn(weights.values(), _digest)
    else:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            digests = list(threads.map(_digest, weights.values()))
    lines = [
        f"{name}{tuple(weight.shape)}{weight.dtype}{digest}"
        for (name, weight), digest in zip(weights.items(), digests, strict=True)
    ]
    return hashlib.sha256("\n".join([_forward_config(model), *sorted(lines)]).encode()).hexdigest()[:24]


def plain_name(name: str) -> str:
    """The name of the weight in the model that peft has wrapped."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()


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


@dataclass(frozen=True)
class Wanted:
    """The n responses whose reference a run needs, by place and by content."""

    rows: np.ndarray  # [n]
    columns: np.ndarray  # [n]
    unique: list[bytes]  # different contents
    content: np.ndarray  # [n], which of them
    digest: str  # of places and contents

    @classmethod
    def of(cls, store: TokenStore, used: np.ndarray, truncate: int | None) -> Wanted:
        """Keys are in the store already; only those of responses that are cut are computed here."""
        rows, columns = np.nonzero(used & np.asarray(store.valid))
        keys = np.array(store.keys[rows, columns])
        if truncate is not None:
            lengths = np.asarray(store.prompt_tokens)[rows] + np.asarray(store.branch_tokens)[rows, columns]
            for place in np.flatnonzero(lengths > truncate).tolist():
                row, column = int(rows[place]), int(columns[place])
                prompt = store.prompt(row)
                branch = store.branch(row, column)[: truncate - len(prompt)]
                key = response_key(prompt, branch, int(store.untrained[row, column]))
                keys[place] = np.frombuffer(key, np.uint8)
        flat = np.ascontiguousarray(keys).view("V16").ravel()
        unique, content = np.unique(flat, return_inverse=True)
        places = hashlib.sha256(np.stack([rows, columns]).tobytes() + flat.tobytes())
        return cls(rows, columns, [bytes(key) for key in unique], content.ravel(), places.hexdigest()[:24])

    def table(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The values of the different contents, [N, K]; 0 where nothing is wanted."""
        filled = np.zeros(shape)
        filled[self.rows, self.columns] = values[self.content] if len(values) else 0.0
        return filled


@torch.no_grad()
def fill(
    model: Any,
    store: TokenStore,
    used: np.ndarray,
    cache: ReferenceCache,
    *,
    max_tokens: int,
    backend: str = "sdpa",
    truncate: int | None = None,
    score: Callable | None = None,
    per_token: Callable | None = None,
    progress: Callable[[int, int], None] | None = None,
    waiting: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Reference log-probs [N, K] (nats, summed; 0 where not used), computing only what the cache lacks.

    Several processes may fill one cache: they share the work, nothing is computed twice, and all get the same numbers.

    Args:
        used: [N, K], which responses.
        max_tokens: of one pack (a larger group has a pack of its own).
        score: how to score a batch, where not packed.
        per_token: `per_token(model, batch) -> [R]`, log-probs of trained tokens to be kept as well.
        progress: told (packs done, packs in all).
        waiting: told once how many responses others are computing, when nothing else is left.

    Raises:
        FuserlError: the cache's disk is full or its file damaged.
    """
    started = time.perf_counter()
    wanted = Wanted.of(store, used, truncate)
    with explained("used", cache.path):
        values = None if per_token else cache.recall(wanted.digest)
        if values is None:
            known = cache.get(wanted.unique, with_tokens=per_token is not None)
            cache.hits += len(known)
            missing = np.array([key not in known for key in wanted.unique], dtype=bool)
            if missing.any():
                work = Work(model, store, cache, wanted, truncate, score or _packed(backend), per_token)
                work.compute(missing, known, max_tokens, progress, waiting)
            values = np.array([known[key] for key in wanted.unique])
            cache.remember(wanted.digest, values)
        else:
            cache.hits += len(wanted.unique)
    cache.seconds += time.perf_counter() - started
    return wanted.table(values, used.shape)


def _packed(backend: str) -> Callable:
    return lambda model, batch: score_batch(model, batch, backend=backend)


@dataclass(frozen=True)
class Work:
    """What is needed to compute the missing."""

    model: Any
    store: TokenStore
    cache: ReferenceCache
    wanted: Wanted
    truncate: int | None
    score: Callable
    per_token: Callable | None

    def compute(
        self,
        missing: np.ndarray,
        known: dict[bytes, float],
        max_tokens: int,
        progress: Callable | None,
        waiting: Callable | None,
    ) -> None:
        """Add the missing to `known`: pack by pack what can be claimed, then what others have computed meanwhile."""
        packs = self.packs(missing, max_tokens)
        todo, done = packs, 0
        was_training = self.model.training
        self.model.eval()
        try:
            with frozen(self.model), self.cache.claiming():
                while todo:
                    left = []
                    for pack in todo:
                        if not self._one(pack, known):
                            left.append(pack)
                            continue
                        done += 1
                        if progress:
                            progress(done, len(packs))
                    if len(left) == len(todo):
                        if waiting:
                            waiting(sum(key not in known for pack in left for key in pack))
                            waiting = None
                        time.sleep(POLL)
                    todo = left
        finally:
            self.model.train(was_training)

    def packs(self, missing: np.ndarray, max_tokens: int) -> list[dict[bytes, tuple[int, int]]]:
        """Where to compute each missing content: its first place in the split."""
        first = np.full(len(missing), len(self.wanted.content), dtype=np.int64)
        np.minimum.at(first, self.wanted.content, np.arange(len(self.wanted.content)))
        places = np.sort(first[missing])
        chosen = np.zeros(self.store.valid.shape, dtype=bool)
        chosen[self.wanted.rows[places], self.wanted.columns[places]] = True
        rows = np.flatnonzero(chosen.any(axis=1))
        tokens = GroupCosts.of(self.store, chosen, rows, self.truncate).tokens
        key_at = {
            (int(self.wanted.rows[place]), int(self.wanted.columns[place])): self.wanted.unique[
                self.wanted.content[place]
            ]
            for place in places
        }
        return [
            {key_at[int(row), int(column)]: (int(row), int(column)) for row in rows[members] for column in np.flatnonzero(chosen[row])}
            for members in next_fit(tokens, max_tokens)
        ]  # fmt: skip

    def _one(self, pack: dict[bytes, tuple[int, int]], known: dict[bytes, float]) -> bool:
        """Compute what is free of a pack; whether all of it is known now."""
        rest = [key for key in pack if key not in known]
        claimed = self.cache.claim(rest, with_tokens=self.per_token is not None)
        known.update(claimed.known)
        self.cache.hits += len(claimed.known)
        if claimed.mine:
            entries = self.entries({key: pack[key] for key in rest if key in claimed.mine})
            self.cache.put(entries)
            self.cache.misses += len(entries)
            known.update(
                self.cache.get([entry.key for entry in entries])
            )  # what stands, should another have been faster
        return all(key in known for key in pack)

    def entries(self, places: dict[bytes, tuple[int, int]]) -> list[Entry]:
        """Compute one pack's."""
        chosen = np.zeros(self.store.valid.shape, dtype=bool)
        for row, column in places.values():
            chosen[row, column] = True
        groups = sorted({row for row, _ in places.values()})
        batch = collate(self.store, groups, chosen, truncate=self.truncate)
        batch = batch.to(next(self.model.parameters()).device)
        tokens: list[np.ndarray] = []
        if self.per_token:
            flat = self.per_token(self.model, batch).detach().cpu()
            flat = flat.to(torch.promote_types(torch.float32, flat.dtype)).numpy()
            ends = np.cumsum([segment.trained for segment in batch.segments if not segment.is_prompt])
            tokens = np.split(flat, ends[:-1])
            logps = np.array([part.sum(dtype=np.float64) for part in tokens])
        else:
            logps = self.score(self.model, batch).double().cpu().numpy()
        row_of = {group: number for number, group in enumerate(groups)}
        table, counts = batch.row.tolist(), batch.num_tokens.tolist()
        entries = []
        for key, (row, column) in places.items():
            unique = table[row_of[row]][column]
            kept = tokens[unique] if tokens else None
            entries.append(Entry(key, float(logps[unique]), counts[row_of[row]][column], kept))
        return entries

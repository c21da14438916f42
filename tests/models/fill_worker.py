"""Fills a reference cache in a process of its own: `python fill_worker.py CACHE STORE SECONDS_A_PACK COLUMNS RESULT`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kit
import numpy as np

from fuserl.models.reference import fill
from fuserl.models.reference_cache import ReferenceCache
from fuserl.models.scoring import score_batch
from fuserl.tokens.store import TokenStore


def main(folder: str, store_folder: str, seconds: str, columns: str, result: str) -> None:
    """One pack a group, and a pause before each, so that a kill or another process comes in between."""
    store = TokenStore(Path(store_folder))
    cache = ReferenceCache(Path(folder), weights="w", dtype="float64", backend="sdpa")

    def slowly(model, batch):
        time.sleep(float(seconds))
        return score_batch(model, batch)

    used = np.zeros_like(store.valid)
    used[:, [int(column) for column in columns.split(",")]] = True
    filled = fill(kit.tiny_model(), store, used, cache, max_tokens=1, backend="sdpa", score=slowly)
    np.save(result, filled)
    print(cache.hits, cache.misses)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Fills a reference cache in a process of its own: `python fill_worker.py CACHE STORE SECONDS_A_PACK`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kit  # noqa: E402
import numpy as np  # noqa: E402

from fuserl.models.reference import ReferenceCache, fill  # noqa: E402
from fuserl.models.scoring import score_batch  # noqa: E402
from fuserl.tokens.store import TokenStore  # noqa: E402


def main(folder: str, store_folder: str, seconds: str) -> None:
    """One pack a group, and a pause before each, so that a kill or another process comes in between."""
    store = TokenStore(Path(store_folder))
    cache = ReferenceCache(Path(folder), weights="w", dtype="float64", backend="sdpa")

    def slowly(model, batch):
        time.sleep(float(seconds))
        return score_batch(model, batch)

    fill(kit.tiny_model(), store, np.array(store.valid), cache, max_tokens=1, backend="sdpa", score=slowly)
    print(cache.hits, cache.misses)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What `doctor` tells of the reference caches, and what pruning takes away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import kit
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fuserl.errors import FuserlError
from fuserl.models.reference import fill
from fuserl.models.reference_cache import ReferenceCache
from fuserl.models.reference_folder import DAY, caches, prune
from fuserl.settings import compose
from fuserl.tokens.store import TokenStore
from fuserl.training.doctor import doctor


def filled_cache(folder: Path, weights: str, *, days: float = 0) -> ReferenceCache:
    """Twelve entries, last used so many days ago."""
    cache = ReferenceCache(folder, weights=weights, dtype="float64", backend="sdpa", model=f"model-{weights}")
    store = kit.token_store(folder / weights)
    fill(kit.tiny_model(), store, np.array(store.valid), cache, max_tokens=64, backend="sdpa")
    made_old(cache.path, days)
    return cache


def made_old(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_what_lies_there(tmp_path):
    old, new = filled_cache(tmp_path, "old", days=3), filled_cache(tmp_path, "new")
    found = caches(tmp_path)
    assert [kept.path for kept in found] == [new.path, old.path]
    assert [kept.entries for kept in found] == [12, 12]
    assert found[1].about == {"weights": "old", "dtype": "float64", "backend": "sdpa", "model": "model-old"}
    assert not any(kept.in_use for kept in found)
    (sums,) = new.splits.iterdir()
    assert found[0].size == new.path.stat().st_size + sums.stat().st_size
    assert time.time() - found[1].last_used == pytest.approx(3 * DAY, abs=60)
    assert caches(tmp_path / "nowhere") == []


def test_looking_is_no_use_and_opening_is(tmp_path):
    path = filled_cache(tmp_path, "w", days=3).path
    caches(tmp_path)
    assert time.time() - path.stat().st_mtime > 2 * DAY
    ReferenceCache(tmp_path, weights="w", dtype="float64", backend="sdpa")
    assert time.time() - path.stat().st_mtime < 60


def test_a_damaged_file_is_told_and_goes(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"no database" * 100)
    assert [kept.entries for kept in caches(tmp_path)] == [None]
    made_old(tmp_path / "x.sqlite", 2)
    assert len(prune(tmp_path, 1)) == 1
    assert list(tmp_path.iterdir()) == []


def test_pruning_takes_what_is_old_and_nothing_else(tmp_path):
    old, new = filled_cache(tmp_path / "c", "old", days=31), filled_cache(tmp_path / "c", "new", days=29)
    working = filled_cache(tmp_path / "c", "working", days=40)
    working.claim([b"somebody computes this"])
    made_old(working.path, 40)
    removed = prune(tmp_path / "c", 30)
    assert [kept.path for kept in removed] == [old.path]
    assert not old.path.exists()
    assert not old.splits.exists()
    assert new.path.exists()
    assert working.path.exists()
    assert len(list(new.splits.iterdir())) == 1


def test_after_pruning_it_is_computed_again(tmp_path):
    cache = filled_cache(tmp_path, "w", days=31)
    cache.close()
    prune(tmp_path, 30)
    again = filled_cache(tmp_path, "w")
    assert again.misses == 12


def test_doctor_tells_and_prunes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    filled_cache(tmp_path / "reference", "old", days=31)
    filled_cache(tmp_path / "reference", "new")
    for number, days in enumerate((31, 31, 0)):
        store = kit.token_store(tmp_path / "tokens", seed=number)
        made_old(store.folder, days)
        if number == 1:
            assert TokenStore.open(store.folder) is not None  # a use
    settings = [f"cache={tmp_path}"]
    doctor(compose("doctor", settings))
    out = capsys.readouterr().out
    assert "pip install 'fuserl[vllm]'" in out
    assert "3 data sets" in out
    assert "2 caches" in out
    assert "model-old: 12 entries" in out
    assert "last used 31 days ago; float64, sdpa" in out
    doctor(compose("doctor", [*settings, "prune_older_than_days=30"]))
    out = capsys.readouterr().out
    assert "deleted 1 reference caches and 1 token stores" in out
    assert "2 data sets" in out
    assert "model-old" not in out
    assert "model-new: 12 entries" in out


@pytest.mark.parametrize("days", ["0", "0.5", "-3", "soon", ".nan", "true"])
def test_what_is_in_use_today_is_never_old(days, tmp_path):
    cache = filled_cache(tmp_path / "reference", "w")
    with pytest.raises(FuserlError, match="no number of days"):
        doctor(compose("doctor", [f"cache={tmp_path}", f"prune_older_than_days={days}"]))
    assert_array_equal([kept.path for kept in caches(tmp_path / "reference")], [cache.path])

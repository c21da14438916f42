"""A cache that can only be read: used where it has all, and told before a model is loaded where it has not."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import weights  # tests/training/conftest.py
from torch.testing import assert_close

from fuserl.errors import FuserlError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capabilities of a thread are Linux's")
VERSION, OVERRIDE = 0x20080522, 0b110  # _LINUX_CAPABILITY_VERSION_3; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def give_up_override() -> None:
    """From here on this thread may write what file modes allow, be it root's or not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("Ii", VERSION, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    effective, permitted, *rest = struct.unpack("6I", sets.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~OVERRIDE, permitted & ~OVERRIDE, *rest)) == 0


def like_anybody(act: Callable[[], Any]) -> Any:
    """What it gives, or raises, in a thread without root's rights over files."""
    found: list[Any] = []

    def go() -> None:
        give_up_override()
        try:
            found.append(act())
        except FuserlError as error:
            found.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if isinstance(found[0], FuserlError):
        raise found[0]
    return found[0]


def make_read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def cache(tmp_path):
    """The cache of the runs; writable again at the end, to be removed."""
    yield tmp_path / "cache"
    for place, _, _ in os.walk(tmp_path / "cache"):
        Path(place).chmod(0o755)


def test_tokens_are_read_from_it(cache, run):
    first = run("fusesft", output="first")
    make_read_only(cache)
    second = like_anybody(lambda: run("fusesft", output="second"))
    for name, weight in weights(first).items():
        assert_close(weights(second)[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("filled", [False, True])
def test_a_reference_that_cannot_be_kept_is_told_before_a_model_is_loaded(filled, cache, run, monkeypatch):
    run("fusepo_dpo" if filled else "fusesft", output="first")
    make_read_only(cache)
    monkeypatch.setattr("fuserl.training.setup.Setup._loaded", None)
    with pytest.raises(FuserlError, match="the reference cache cannot be written") as caught:
        like_anybody(lambda: run("fusepo_dpo", output="second"))
    assert caught.value.where.startswith(str(cache))
    assert "cache=DIR" in caught.value.hint


def test_tokens_that_cannot_be_kept_are_told(cache, run):
    cache.mkdir()
    make_read_only(cache)
    with pytest.raises(FuserlError, match="the token store cannot be written: Permission denied") as caught:
        like_anybody(lambda: run("fusesft"))
    assert "cache=DIR" in caught.value.hint

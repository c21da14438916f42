"""A clock that is set back or forward by a day changes no result, and stops nothing."""

from __future__ import annotations

import csv
import itertools
import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from conftest import weights  # tests/training/conftest.py
from torch.testing import assert_close

from fuserl.models.reference_cache import alive
from fuserl.sources.endpoint import retry_after
from fuserl.sweeps import progress
from fuserl.sweeps.plan import Job

DAY = 24 * 3600.0


@pytest.fixture
def jumping(monkeypatch):
    """Whoever asks for the time gets another day each time: yesterday, today, tomorrow."""
    real, days = time.time, itertools.cycle((0, -1, 0, 1))
    asked = []

    def jumps() -> float:
        asked.append(next(days))
        return real() + DAY * asked[-1]

    monkeypatch.setattr(time, "time", jumps)
    return asked


def test_a_run_whose_clock_jumps_reaches_the_same_weights(run, jumping, monkeypatch):
    """The reference is computed, and claimed, while it jumps; loaders and checkpoints as well."""
    way = ("trainer.max_tokens=200", "trainer.num_workers=1", "checkpoint.asynchronous=true")
    folder = run("fusepo_dpo", *way, output="jumped")
    assert {-1, 0, 1} <= set(jumping), "nobody has asked"
    monkeypatch.undo()
    plain = run("fusepo_dpo", *way, f"cache={folder.parent / 'other'}", output="plain")
    ours, theirs = weights(folder), weights(plain)
    for name in theirs:
        assert_close(ours[name], theirs[name], rtol=0, atol=0)
    with (folder / "metrics.csv").open() as file:
        speeds = [
            float(value) for row in csv.DictReader(file) for key, value in row.items() if "speed" in key and value
        ]
    assert speeds
    assert min(speeds) > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["train_seconds"] < 600
    assert 0 <= summary["data_seconds"] < 600


@pytest.mark.parametrize(("ago", "lives"), [(0, True), (100, True), (-100, True), (DAY, False), (-DAY, False)])
def test_a_claim_of_another_day_is_void(ago, lives):
    """Of a machine that cannot be asked: set back, its clock would have kept the claims of the dead for a day."""
    assert alive("another machine|1|2|x", time.time() - ago) is lives


@pytest.mark.parametrize("skew", [timedelta(), timedelta(days=1), timedelta(days=-1)])
def test_a_server_that_says_when_means_its_own_clock(skew):
    now = datetime.now(UTC).replace(microsecond=0) + skew
    until = format_datetime(now + timedelta(seconds=7), usegmt=True)
    assert retry_after({"retry-after": until, "date": format_datetime(now, usegmt=True)}) == 7.0


@pytest.mark.parametrize(("day", "seconds"), [(1, 0.0), (0, pytest.approx(5, abs=3))])
def test_a_job_that_began_tomorrow_has_run_for_no_time(day, seconds, tmp_path):
    started = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time() + DAY * day - 5}
    (tmp_path / progress.STARTED).write_text(json.dumps(started))
    state = progress.state_of(Job(("seed=1",), "job", tmp_path))
    assert (state.what, state.seconds) == ("running", seconds)

"""The harness sees what it is there to see."""

from __future__ import annotations

from pathlib import Path
from random import Random

import killing
import pytest
from forking import Nursery
from killing import Job, Killing


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """`killed(how)`: a job that is careless in that way, killed."""
    monkeypatch.setattr(killing, "PATIENCE", 0.5)
    nursery = Nursery(tmp_path, "fuserl.errors", paths=[Path(__file__).parents[1]])

    def left(folder: Path) -> dict[str, object]:
        return {"letters": (folder / "letters.txt").read_text()}

    def go(how: str) -> killing.Tally:
        job = Job("it", "kills.careless", lambda _: [how, "OUT"], left, "end", "out/letters.txt", 1)
        return Killing(job, nursery, tmp_path / "world").kill(4, Random(0))

    yield go
    nursery.close()


def test_a_careful_job_passes(killed):
    tally = killed("careful")
    assert (tally.kills, tally.kept > 0, tally.ended > 0) == (4, True, True)


def test_work_done_twice_is_seen(killed):
    with pytest.raises(AssertionError, match="unlike an undisturbed run: letters: 'a+b?ab', not 'ab'"):
        killed("forgets")


def test_a_run_that_fails_is_seen(killed):
    with pytest.raises(AssertionError, match=r"status 256\n(.|\n)*the power went"):
        killed("fails")


def test_a_process_that_is_left_behind_is_seen(killed):
    with pytest.raises(AssertionError, match=r"outlived by \['\S*python\S* -c import time"):
        killed("leaves a process")

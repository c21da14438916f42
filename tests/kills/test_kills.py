"""A few kills of every verb that works long; `python -m benchmarks.kills` has a hundred."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import kill_jobs
import kit
import pytest
from forking import Nursery
from killing import Killing

SHORT = [job for job in kill_jobs.JOBS if not job.processes and job.name != "train, distill"]
KILLS = 2  # of each; more where none found work on the disk


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are killed."""
    imports = sorted({name for job in SHORT for name in job.imports})
    paths = [kit.ROOT, *kill_jobs.ROOMS]
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), *imports, "benchmarks.soak", paths=paths)
    yield nursery
    nursery.close()


@pytest.mark.parametrize("job", SHORT, ids=lambda job: job.name)
def test_killed_and_given_again_it_ends_as_an_undisturbed_run(job, nursery, tmp_path):
    tally = Killing(job, nursery, tmp_path / "world").kill(KILLS, Random(0))
    assert tally.kills >= KILLS
    assert tally.kept, "no kill came after something was on the disk"
    assert tally.ended


def soaked(nursery: Nursery, folder: Path, kinds: list[str], cycles: int) -> list[dict]:
    """Rows of trainings in one process, without kills."""
    given = ["--cycles", str(cycles), "--kills", "0", "--out", str(folder), "--kinds", *kinds]
    assert nursery.run("benchmarks.soak", given)
    return [json.loads(line) for line in (folder / "soak.jsonl").read_text().splitlines()]


def test_a_process_that_trains_again_and_again_holds_no_more(nursery, tmp_path):
    """Three turns of two kinds; `python -m benchmarks.soak` has an hour, with kills between."""
    kinds = ["fusepo_dpo, checkpoints behind", "fusesft, loader processes"]
    _, one, _, other = (rows := soaked(nursery, tmp_path, kinds, 6))[-4:]
    for name in ("fds", "threads", "children", "shared_memory_mb"):
        assert other[name] == one[name], f"{name}: {[row[name] for row in rows]}"
    assert other["objects"] < 1.02 * one["objects"]
    assert other["rss_mb"] < one["rss_mb"] + 20
    assert len(list(tmp_path.glob("soak_*.md"))) == 1

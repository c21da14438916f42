"""A few kills of every verb that works long; `python -m benchmarks.kills` has a hundred."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import kill_jobs
import pytest
from forking import Nursery
from killing import Killing

SHORT = [job for job in kill_jobs.JOBS if not job.processes and job.name != "train, distill"]
KILLS = 3


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are killed."""
    imports = sorted({name for job in SHORT for name in job.imports})
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), *imports, paths=kill_jobs.ROOMS)
    yield nursery
    nursery.close()


@pytest.mark.parametrize("job", SHORT, ids=lambda job: job.name)
def test_killed_and_given_again_it_ends_as_an_undisturbed_run(job, nursery, tmp_path):
    tally = Killing(job, nursery, tmp_path / "world").kill(KILLS, Random(0))
    assert tally.kills >= KILLS
    assert tally.kept, "no kill came after something was on the disk"
    assert tally.ended

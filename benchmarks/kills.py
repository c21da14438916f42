"""A hundred kills: every long verb is killed at random moments and given again; what it leaves is compared.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--jobs generate ...]

Each job runs once undisturbed. Then it is started, killed with SIGKILL and given again, up to four kills in a row, until it comes to its
end; its results must be those of the undisturbed run (`tests/kills/kill_jobs.py` says which files). A quarter of the kills fall into the
first tenth of an undisturbed run's time, the rest are spread over all of it. Where a job has processes of its own, all are killed, or the
first alone, or one of the others, by turns of chance; whatever then still runs has to end by itself. A kill counts if it hit a process that ran.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from random import Random

from benchmarks import kit

sys.path += [str(kit.ROOT / "tests"), str(kit.ROOT / "tests/kills")]

from forking import Nursery
from kill_jobs import JOBS, ROOMS
from killing import Job, Killing, Tally

FORM = """
{kills} kills with SIGKILL over {jobs} jobs, chance {seed}. *with work kept*: files with work of that job were on the disk when it died.
*while resuming*: the killed run had itself begun with what a killed one had left. *told*: one process of several was killed, and the
others ended the job with a clear error. *ends*: times that the job, given again, came to its end, **each with the same result** as the
undisturbed run: every byte of data sets, stores and models; of training the weights bit for bit, every row of `metrics.csv` but
for speeds, and all of `samples.jsonl`. Nothing was left running.
"""
COLUMNS = (
    "job", "undisturbed, s", "kills", "with work kept", "while resuming", "all / first / one process", "told", "too late, not counted",
    "ends", "equal",
)  # fmt: skip


def spread(kills: int, jobs: list[Job]) -> list[int]:
    """Kills a job, by their shares; the sum is `kills`.

    >>> spread(100, list(JOBS)) == [job.share for job in JOBS]
    True
    """
    whole = sum(job.share for job in jobs)
    edges = [round(kills * sum(job.share for job in jobs[:at]) / whole) for at in range(len(jobs) + 1)]
    return [high - low for low, high in pairwise(edges)]


def row(tally: Tally) -> list[object]:
    """Of the table."""
    whom = " / ".join(str(tally.whom.get(one, 0)) for one in ("all", "first", "one"))
    return [
        tally.job, f"{tally.seconds:.1f}", tally.kills, tally.kept, tally.resumed, whom, tally.told, tally.late, tally.ended,
        f"{tally.ended} of {tally.ended}",
    ]  # fmt: skip


def killed(jobs: list[Job], arguments: argparse.Namespace, folder: Path) -> list[list[object]]:
    """Rows of the table; an AssertionError where a result differs."""
    imports = sorted({name for job in jobs for name in job.imports})
    nursery, rows = Nursery(folder, *imports, paths=ROOMS), []
    try:
        for number, (job, kills) in enumerate(zip(jobs, spread(arguments.kills, jobs), strict=True)):
            if kills:
                one = Killing(job, nursery, folder / f"job{number}")
                rows.append(row(one.kill(kills, Random(f"{arguments.seed} {job.name}"))))
                print(*rows[-1], sep=" | ", flush=True)
    finally:
        nursery.close()
    return rows


def main() -> Path:
    """Kill, compare, write the table."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", default=[job.name for job in JOBS], help="some of the jobs, by name")
    arguments = parser.parse_args()
    jobs = [job for job in JOBS if job.name in arguments.jobs]
    with tempfile.TemporaryDirectory() as folder:
        rows = killed(jobs, arguments, Path(folder))
    total = sum(int(str(one[2])) for one in rows)
    form = FORM.strip().format(kills=total, jobs=len(rows), seed=arguments.seed)
    text = kit.header("A hundred kills", arguments, model=False) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("kills", text, arguments)


if __name__ == "__main__":
    main()

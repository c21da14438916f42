"""Train, kill, resume, finish, compare, for an hour in one process: memory and handles must stay flat.

    python -m benchmarks.soak [--hours 1] [--seed 0] [--record FILE]
    python -m benchmarks.soak --read FILE      the table of a record, also of a run that was killed

Every cycle is one small training of the miniature world in this process, of another objective or way of running, later another seed; the
same training in a process of its own, which is killed with SIGKILL once or twice and given again to its end, and must leave the same
results; and `compare` over both, in this process. Then the folders go, and a line of JSON says what this process holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks import kit

sys.path += [str(kit.ROOT / "tests"), str(kit.ROOT / "tests/kills")]

from forking import Nursery, descendants
from kill_jobs import IN_TRAINING, ROOMS, run_left

from fuserl.evaluation.compare import compare
from fuserl.reporting.figures import curves
from fuserl.settings import compose
from fuserl.training.run import train

KINDS = {  # trainings that take turns
    "fusepo_dpo, checkpoints behind": ("objective=fusepo_dpo", "checkpoint.asynchronous=true"),
    "fusesft, loader processes": ("objective=fusesft", "trainer.num_workers=1"),
    "fusepo_rloo": ("objective=fusepo_rloo",),
    "dpo_best with LoRA": ("objective=dpo_best", "target.lora={r: 4, target_modules: [q_proj, v_proj]}"),
}
STEPS = 12  # of a training
SMALL = (
    "data.limit=24", "data.validation_limit=8", "batch_size=8", f"max_steps={STEPS}", "logger=csv", "optimizer.lr=1e-3", "probe.prompts=2",
    "probe.max_new_tokens=8", "trainer.accelerator=cpu", "checkpoint.every=1", "trainer.log_every=1",
    "trainer.val_every=4", "trainer.progress_bar=false", "trainer.max_tokens=200",
)  # fmt: skip
WARM = 0.25  # share of the cycles that are left out: allocators and caches of libraries fill
DAILY = 0.05  # of what is resident: memory that grows less than that in a day is flat
HANDLES = ("fds", "threads", "children", "shared_memory_mb")
FORM = """
{cycles} cycles in {hours:.2f} hours: train in one process, the same training killed and resumed in others, `compare` over both. {kills} kills, each
followed by a resume; **{equal} of {cycles} killed runs left the results of the undisturbed one**. The first {warm} cycles are left out below:
allocators and caches of libraries fill. Slopes are least squares over the rest, with their standard error. Memory is *flat* if it grows by less
than {daily:.0%} of itself a day, or by no more than twice the slope's standard error; growth would mean that something of each finished
training stays. Handles are *flat* if the last cycle of each kind has no more than the first one had.
"""
COLUMNS = ("", "after warm-up", "at the end", "largest", "slope an hour", "a cycle", "verdict")
NAMES = {
    "rss_mb": "resident memory, MB", "own_mb": "of it the process's own, MB", "objects": "objects of Python", "fds": "open files",
    "threads": "threads", "children": "processes", "shared_memory_mb": "/dev/shm, MB", "cache_mb": "cache folder, MB",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where the cycles work."""

    folder: Path
    nursery: Nursery | None  # None: nothing is killed
    kinds: Sequence[str]

    def settings(self, kind: str, seed: int, output: str) -> list[str]:
        """Overrides of `train`."""
        return [
            *SMALL, *KINDS[kind], f"seed={seed}", f"output={self.folder / output}", f"cache={self.folder / 'cache'}",
        ]  # fmt: skip


def cycle(world: World, number: int, rng: Random) -> dict[str, Any]:
    """One of them; what it found, and what the process holds afterwards.

    Raises:
        AssertionError: the killed run left other results.
    """
    kind, seed = world.kinds[number % len(world.kinds)], number // len(world.kinds)
    begun = time.monotonic()
    undisturbed = train(compose("train", world.settings(kind, seed, "undisturbed")))
    seconds, kills = time.monotonic() - begun, 0
    if world.nursery is not None:
        kills = kill_and_resume(world.nursery, world.settings(kind, seed, "killed"), world.folder / "killed", rng)
        wanted, found = run_left(undisturbed), run_left(world.folder / "killed")
        assert found == wanted, [name for name in wanted if found.get(name) != wanted[name]]
    runs = f"runs=[{undisturbed}{',' + str(world.folder / 'killed') if world.nursery else ''}]"
    compare(compose("compare", [runs, f"output={world.folder / 'compared'}"]))
    told = {"cycle": number, "kind": kind, "seed": seed, "train_seconds": seconds, "kills": kills}
    told |= {"equal": world.nursery is not None, "output_mb": size_mb(world.folder) - size_mb(world.folder / "cache")}
    for name in ("undisturbed", "killed", "compared"):
        shutil.rmtree(world.folder / name, ignore_errors=True)
    return told | held(world)


def kill_and_resume(nursery: Nursery, settings: list[str], output: Path, rng: Random) -> int:
    """Kill a run at a random step, perhaps once more while it resumes, then let it come to its end; how often it was hit."""
    least = rng.randint(1, STEPS - 2)

    def there() -> bool:
        return any(int(path.stem.split("-")[1]) >= least for path in output.glob("checkpoints/step-*.ckpt"))

    kills = int(not nursery.run("train", settings, kill_when=there, kill_after=rng.uniform(0, 0.05)))
    if rng.random() < 0.5:
        kills += not nursery.run("train", settings, kill_after=rng.uniform(0, 0.5))
    assert nursery.run("train", settings)
    return kills


def held(world: World) -> dict[str, float]:
    """By this process, after its garbage has gone back to the system; megabytes are 2**20 bytes."""
    gc.collect()
    kit.give_back_freed()
    here = Path("/proc/self")
    status, rollup = (
        dict(line.split(":", 1) for line in (here / name).read_text().splitlines() if ":" in line)
        for name in ("status", "smaps_rollup")
    )
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "pss_mb": int(rollup["Pss"].split()[0]) / 1024,
        "own_mb": int(rollup["Anonymous"].split()[0]) / 1024,
        "objects": len(gc.get_objects()),
        "fds": len(list((here / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "children": len(descendants(os.getpid())),
        "shared_memory_mb": size_mb(Path("/dev/shm")),
        "cache_mb": size_mb(world.folder / "cache"),
    }


def size_mb(folder: Path) -> float:
    """Of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def soak(world: World, record: Path, *, seed: int, goes_on: Callable[[int], bool]) -> list[dict[str, Any]]:
    """Cycles, each a line of the record as soon as it is over."""
    rng, begun, rows = Random(seed), time.time(), []
    said = (world.folder / "said.txt").open("a")
    with said, record.open("a", encoding="utf-8") as lines:
        while goes_on(len(rows)):
            with redirect_stderr(said):
                row = cycle(world, len(rows), rng)
            said.truncate(0)
            rows.append(row | {"hours": (time.time() - begun) / 3600, "begun": begun})
            lines.write(json.dumps(rows[-1]) + "\n")
            lines.flush()
            print(
                f"{row['cycle']}: {row['kind']}, {row['rss_mb']:.1f} MB, {row['fds']} files, {row['kills']} kills",
                flush=True,
            )
    return rows


def read(record: Path) -> list[dict[str, Any]]:
    """Rows of the record's last run; a line that a kill has torn is left out."""
    rows = [
        json.loads(line) for line in record.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    return [row for row in rows if row["begun"] == rows[-1]["begun"]]


def warm_up(rows: Sequence[Mapping[str, Any]]) -> int:
    """Cycles that are left out: whole turns of all kinds, at least a quarter where there are enough."""
    kinds = len({row["kind"] for row in rows})
    turns = max(1, round(WARM * len(rows) / kinds))
    return turns * kinds if len(rows) >= 3 * kinds else 0


def slope(rows: Sequence[Mapping[str, Any]], name: str, over: str) -> tuple[float, float]:
    """Of a column over another one, least squares, and its standard error.

    Every kind has its own level: what one holds more than another is no growth.
    """
    kinds = sorted({row["kind"] for row in rows})
    levels = np.array([[float(row["kind"] == kind) for kind in kinds] for row in rows])
    x = np.column_stack([np.array([row[over] for row in rows], dtype=float), levels])
    y = np.array([row[name] for row in rows], dtype=float)
    found, *_ = np.linalg.lstsq(x, y, rcond=None)
    free = len(rows) - x.shape[1]
    if free < 1:
        return float(found[0]), float("inf")
    variance = float(((y - x @ found) ** 2).sum()) / free
    return float(found[0]), float(np.sqrt(variance * np.linalg.pinv(x.T @ x)[0, 0]))


def flat(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """See the text above the table."""
    if name in HANDLES:
        firsts = {row["kind"]: row[name] for row in reversed(rows)}
        lasts = {row["kind"]: row[name] for row in rows}
        return all(lasts[kind] <= firsts[kind] for kind in lasts)
    rate, error = slope(rows, name, "hours")
    return rate <= max(DAILY * rows[0][name] / 24, 2 * error)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is held, a row a kind of thing."""
    lines = []
    for name, title in NAMES.items():
        values = [float(row[name]) for row in rows]
        (rate, error), (each, _) = slope(rows, name, "hours"), slope(rows, name, "cycle")
        numbers = [f"{value:,.1f}".removesuffix(".0") for value in (values[0], values[-1], max(values))]
        verdict = "flat" if flat(rows, name) else "**not flat**"
        lines.append([title, *numbers, f"{rate:+,.3f} ± {error:,.3f}", f"{each:+,.4f}", verdict])
    return kit.table(COLUMNS, lines)


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> Path:
    """The table and, beside it, the figure."""
    warm = warm_up(rows)
    form = FORM.strip().format(
        cycles=len(rows), hours=rows[-1]["hours"], kills=sum(row["kills"] for row in rows), warm=warm, daily=DAILY,
        equal=sum(row["equal"] for row in rows),
    )  # fmt: skip
    text = kit.header("An hour of trainings", arguments, model=False) + f"\n{form}\n\n" + table(rows[warm:])
    path = kit.write("soak", text, arguments)
    lines = {
        f"{NAMES[name]}": [(row["hours"] * 60, row[name] / rows[warm][name]) for row in rows]
        for name in ("rss_mb", "own_mb", "objects", "fds", "threads")
    }
    figure = curves(lines, title="What the process holds, 1: after warm-up", x="minutes", y="times")
    figure.write_html(path.with_suffix(".html"), include_plotlyjs="cdn")
    return path


def main() -> Path:
    """Soak for the hours asked, or read a record."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--cycles", type=int, default=10**9, help="at most")
    parser.add_argument("--kills", type=int, choices=(0, 1), default=1, help="0: no second process is killed")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="of trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--record", type=Path, help="JSON lines, one a cycle; appended to. default: soak.jsonl in --out"
    )
    parser.add_argument("--read", type=Path, help="only write the table of this record")
    arguments = parser.parse_args()
    if arguments.read:
        return write(read(arguments.read), arguments)
    record = arguments.record or arguments.out / "soak.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 3600 * arguments.hours
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder), *IN_TRAINING, paths=ROOMS) if arguments.kills else None
        try:
            world = World(Path(folder), nursery, arguments.kinds)
            rows = soak(
                world,
                record,
                seed=arguments.seed,
                goes_on=lambda done: done < arguments.cycles and time.monotonic() < end,
            )
        finally:
            if nursery:
                nursery.close()
    return write(rows, arguments)


if __name__ == "__main__":
    main()

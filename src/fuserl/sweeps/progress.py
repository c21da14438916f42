"""How far a sweep is, read off its jobs' folders: so it is the same for every launcher, and after a kill."""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fuserl.sweeps.job import FAILURE, STARTED, last_run, results
from fuserl.sweeps.plan import Job, Sweep
from fuserl.terminal import WIDE

EVERY = 1.0  # seconds between two looks at the folders
MOST = 24  # rows of the live table
SIGNS = {"done": "[green]✓[/]", "running": "[blue]▶[/]", "waiting": "[dim]·[/]", "failed": "[red]✗[/]"}
ORDER = ("failed", "running", "done", "waiting")
ELSEWHERE = 24 * 3600.0  # seconds after which a job of another machine that has not ended is not believed to run


@dataclass(frozen=True)
class State:
    """Of one job."""

    job: Job
    what: str  # a key of SIGNS
    detail: str = ""  # steps, or why it failed
    seconds: float | None = None
    nll: float | None = None  # validation, last
    score: float | None = None  # of the test, or of the probe
    since: float = 0.0  # when it ended, seconds of the clock


def states(sweep: Sweep) -> list[State]:
    """Of every job that is planned, or, where a sweeper searches, that has been started."""
    return [state_of(job) for job in (sweep.jobs if sweep.jobs is not None else found_jobs(sweep))]


def found_jobs(sweep: Sweep) -> list[Job]:
    """Jobs that have a folder, oldest first."""
    started = [(path, _read(path)) for path in sweep.folder.glob(f"{sweep.verb}-*/{STARTED}")]
    given = set(sweep.overrides)
    return [
        Job(tuple(told["overrides"]), ", ".join(o for o in told["overrides"] if o not in given), path.parent)
        for path, told in sorted(started, key=lambda pair: pair[1]["time"])
    ]


def state_of(job: Job) -> State:
    """What the job's folder says."""
    if (job.folder / FAILURE).exists():
        return State(job, "failed", _read(job.folder / FAILURE)["error"])
    started = _read(job.folder / STARTED) if (job.folder / STARTED).exists() else None
    run = last_run(job.folder)
    if run is not None:
        return _done(job, run, started)
    if started is None:
        return State(job, "waiting")
    if not _alive(started):
        return State(job, "waiting", "was interrupted")
    return State(job, "running", _how_far(job.folder), max(0.0, time.time() - started["time"]))


def _done(job: Job, run: Path, started: dict[str, Any] | None) -> State:
    """Of a run that trained, or of a pipeline that ends in another verb and tells what that one measured."""
    summary, ended = results(run), (job.folder / "summary.json").stat().st_mtime
    took = ended - started["time"] if started and ended > started["time"] else summary.get("train_seconds", 0.0)
    validation, test = summary.get("validation") or {}, summary.get("test") or {}
    score = test["score"] if test.get("score") is not None else validation.get("probe/score", {}).get("last")
    nll = validation.get("val/nll", {}).get("last", test.get("nll"))
    told = f"{summary['steps']} steps" if "steps" in summary else run.name.split("-")[0]
    return State(job, "done", told, took, nll, score, ended)


def _alive(started: dict[str, Any]) -> bool:
    if started["host"] != socket.gethostname():
        return abs(time.time() - started["time"]) < ELSEWHERE
    try:
        os.kill(started["pid"], 0)
    except OSError:
        return False
    return True


def _how_far(folder: Path) -> str:
    """Steps of a run; the last word of a pipeline."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            steps = [row["step"] for row in csv.DictReader(file)]
        return f"{steps[-1]}/{_read(folder / 'manifest.json')['steps']}" if steps else ""
    except (OSError, KeyError, ValueError):
        log = folder / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        return next((line.strip()[:60] for line in reversed(lines) if line.strip()), "")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def table(found: Sequence[State], *, most: int | None = None, title: str = "") -> Table:
    """One row a job, in the order of the sweep; with `most`, those that matter now."""
    made = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    made.add_column("")
    made.add_column("job", overflow="fold")
    made.add_column("", overflow="ellipsis", no_wrap=True)
    for name in ("seconds", "val nll", "score"):
        made.add_column(name, justify="right", no_wrap=True)
    shown = list(found)
    if most is not None and len(shown) > most:
        by_need = sorted(shown, key=lambda state: (ORDER.index(state.what), -state.since))
        keep = {id(state) for state in by_need[:most]}
        shown = [state for state in shown if id(state) in keep]
    for state in shown:
        numbers = (_number(state.seconds, 0), _number(state.nll, 4), _number(state.score, 4))
        made.add_row(SIGNS[state.what], Text(state.job.label), Text(state.detail.split("\n")[0]), *numbers)
    return made


def line(found: Sequence[State], *, done_before: int, since: float) -> str:
    """Counts, and the time left by the pace so far."""
    counts = Counter(state.what for state in found)
    told = ", ".join(f"{counts[what]} {what}" for what in ("done", "running", "waiting", "failed") if counts[what])
    ended, left = counts["done"] + counts["failed"] - done_before, counts["running"] + counts["waiting"]
    if ended > 0 and left:
        minutes = left * (time.monotonic() - since) / ended / 60
        told += f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"
    return told


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@contextmanager
def watching(sweep: Sweep) -> Iterator[None]:
    """A live table on terminals, a line for every change elsewhere, while the jobs run."""
    console = Console(file=sys.stderr, highlight=False)
    ended = threading.Event()
    show = _live if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(sweep, console, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _live(sweep: Sweep, console: Console, ended: threading.Event) -> None:
    since = time.monotonic()
    before = sum(state.what in ("done", "failed") for state in states(sweep))
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        while not ended.wait(EVERY):
            found = states(sweep)
            told = Text(line(found, done_before=before, since=since))
            live.update(Group(table(found, most=MOST, title=f"{sweep.verb}: {sweep.folder}"), told), refresh=True)


def _lines(sweep: Sweep, console: Console, ended: threading.Event) -> None:
    since, told = time.monotonic(), {state.job.folder: state.what for state in states(sweep)}
    before = sum(what in ("done", "failed") for what in told.values())
    while True:
        last = ended.wait(EVERY)
        found = states(sweep)
        for state in found:
            if state.what != told.get(state.job.folder, "waiting") and state.what != "waiting":
                console.print(
                    f"{state.what}: {state.job.label} {_short(state)}   ({line(found, done_before=before, since=since)})",
                    markup=False, soft_wrap=True,
                )  # fmt: skip
            told[state.job.folder] = state.what
        if last:
            return


def _short(state: State) -> str:
    if state.what == "failed":
        return state.detail.split("\n")[0]
    parts = {"s": _number(state.seconds, 0), "val nll": _number(state.nll, 4), "score": _number(state.score, 4)}
    return " ".join(f"{name} {value}" for name, value in parts.items() if value) if state.what == "done" else ""


def say_result(found: Sequence[State], sweep: Sweep) -> None:
    """The whole table, once, at the end."""
    console = Console(file=sys.stderr, highlight=False)
    wide = console if console.is_terminal else Console(file=sys.stderr, highlight=False, width=WIDE)
    wide.print(table(found, title=f"{sweep.verb}: {sweep.folder}"))

"""One job of a sweep, in whatever process a launcher gives it: its folder, its log, its failure."""

from __future__ import annotations

import json
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.records.journal import BusyFolder
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import register_resolvers
from fuserl.sweeps.plan import job_folder
from fuserl.terminal import say

FAILURE, STARTED = "failure.json", "started.json"
PATIENCE = 0.5  # seconds between two looks at a folder that another job holds


def task(verb: str, cfg: DictConfig) -> float:
    """What Hydra's launchers call: run the job, and tell a searching sweeper how good it was.

    Returns:
        The job's `metric`; nan where it failed or did not measure it.
    """
    try:
        run(verb, cfg, _overrides())
    except Exception:  # kept in the job's folder; the other jobs go on
        return math.nan
    return outcome(job_folder(verb, Path(cfg.output), cfg), cfg.metric)


def outcome(folder: Path, metric: str) -> float:
    """Of a job's folder: its metric, nan where it failed."""
    run_folder = last_run(folder)
    return math.nan if run_folder is None or (folder / FAILURE).exists() else value_of(run_folder, metric)


def last_run(folder: Path) -> Path | None:
    """The finished run of a job; of a pipeline its last stage. None where it is not finished."""
    if not (folder / "summary.json").exists():
        return None
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return folder.parent / found["last_stage"] if "last_stage" in found else folder


def _overrides() -> list[str]:
    """Of the job that Hydra runs in this process."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def run(verb: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Run the job in its own folder of the sweep `cfg.output`; what it says goes to `log.txt` there.

    Raises:
        Exception: whatever ended the job; `failure.json` keeps it.
    """
    from fuserl.training.quiet import quiet

    register_resolvers()
    quiet()
    cfg, sweep = cfg.copy(), Path(cfg.output)
    folder = job_folder(verb, sweep, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    own = [one for one in overrides if not one.startswith("output=")]
    started = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "overrides": own}
    write_text_atomically(folder / STARTED, json.dumps(started))
    with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            _RUNS[verb](sweep, folder, cfg)
        except Exception as error:
            log.write(traceback.format_exc())
            write_failure(folder, error)
            raise


def write_failure(folder: Path, error: Exception) -> None:
    """Why a job ended early, for the sweep's table and for `compare`."""
    of_ours = isinstance(error, FuserlError)
    told = {
        "error": error.what if of_ours else f"{type(error).__name__}: {error}",
        "where": error.where if of_ours else None,
        "hint": error.hint if of_ours else f"the whole story is in {folder / 'log.txt'}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / FAILURE, json.dumps(told, indent=1, ensure_ascii=False))


def results(folder: Path) -> dict[str, Any]:
    """What the verb that made a folder says of it in `summary.json`; nothing where it writes none, as `merge`."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def value_of(folder: Path, metric: str) -> float:
    """A number of the run's `summary.json`: `test/score`, or the last value of a validation metric such as `val/nll`.

    Returns:
        nan, with a word about what there is, where the run did not measure it.
    """
    summary = results(folder)
    known = {name: found["last"] for name, found in (summary.get("validation") or {}).items()}
    known |= {f"test/{name}": value for name, value in (summary.get("test") or {}).items()}
    found = known.get(metric)
    if isinstance(found, int | float):
        return float(found)
    if metric.startswith("val/") and "validation" not in summary:  # the verb never validates: only a search would mind
        return math.nan
    numbers = sorted(name for name, value in known.items() if isinstance(value, int | float))
    say(f"{folder} did not measure `metric={metric}`; it has {', '.join(numbers) or 'nothing'}")
    return math.nan


def _train(sweep: Path, folder: Path, cfg: DictConfig) -> None:
    from fuserl.training.run import train  # late: who only starts the processes of jobs does not wait for it

    cfg.output, cfg.trainer.progress_bar = str(folder), False
    _patiently(lambda: train(cfg))


def _pipeline(sweep: Path, folder: Path, cfg: DictConfig) -> None:
    from fuserl.training.pipeline import pipeline

    last = _patiently(lambda: pipeline(cfg, shared=sweep))
    write_text_atomically(folder / "summary.json", json.dumps({"last_stage": last.name}))


def _patiently(work: Callable[[], Path]) -> Path:
    """Again and again while another job runs the same: its result is then found finished."""
    while True:
        try:
            return work()
        except BusyFolder:
            time.sleep(PATIENCE)


_RUNS: dict[str, Callable[[Path, Path, DictConfig], None]] = {"train": _train, "pipeline": _pipeline}

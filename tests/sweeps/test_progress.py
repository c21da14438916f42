"""What a sweep's table says is read off folders, whoever runs the jobs."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from fuserl.sweeps.plan import Job, Sweep
from fuserl.sweeps.progress import line, state_of, states, table

HERE = {"host": socket.gethostname(), "pid": os.getpid(), "overrides": ["seed=1", "output=x"]}
SUMMARY = {
    "steps": 7,
    "train_seconds": 3.0,
    "validation": {"val/nll": {"last": 0.5}},
    "test": {"score": 0.75},
}


def folder(path: Path, *, started: dict | None = None, **files: object) -> Job:
    path.mkdir(parents=True)
    if started is not None:
        (path / "started.json").write_text(json.dumps({"time": time.time() - 5} | HERE | started))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return Job(("seed=1",), f"job {path.name}", path)


@pytest.mark.parametrize(
    ("what", "files"),
    [
        ("waiting", {}),
        ("running", {"started": {}}),
        ("running", {"started": {"host": "another", "pid": 1}}),
        ("waiting", {"started": {"host": "another", "pid": 1, "time": 0}}),
        ("waiting", {"started": {"pid": 2**22 - 1}}),
        ("done", {"started": {}, "summary": SUMMARY}),
        ("done", {"summary": SUMMARY}),
        ("failed", {"started": {}, "failure": {"error": "no data"}}),
        ("failed", {"summary": SUMMARY, "failure": {"error": "no data"}}),
    ],
)
def test_the_state_of_a_job(tmp_path, what, files):
    assert state_of(folder(tmp_path / "job", **files)).what == what


def test_numbers_come_from_the_run_and_of_a_pipeline_from_its_last_stage(tmp_path):
    folder(tmp_path / "train-a", summary=SUMMARY)
    state = state_of(folder(tmp_path / "pipeline-b", started={}, summary={"last_stage": "train-a"}))
    assert (state.nll, state.score, state.detail) == (0.5, 0.75, "7 steps")
    assert 4 < state.seconds < 10


def test_a_running_job_tells_its_steps(tmp_path):
    job = folder(tmp_path / "job", started={}, manifest={"steps": 40})
    assert state_of(job).detail == ""
    (job.folder / "metrics.csv").write_text("step,loss\n0,1\n10,2\n")
    assert state_of(job).detail == "10/40"
    (job.folder / "metrics.csv").write_text("")
    assert state_of(job).detail == ""


def test_a_search_finds_its_jobs_as_they_start(tmp_path):
    folder(tmp_path / "train-a", started={"time": 2.0, "overrides": ["a=1", "tau=3"]})
    folder(tmp_path / "train-b", started={"time": 1.0, "overrides": ["a=1", "tau=4"]})
    found = states(Sweep("train", tmp_path, ("a=1",), None))
    assert [state.job.label for state in found] == ["tau=4", "tau=3"]


def test_a_table_that_is_too_long_keeps_what_matters(tmp_path):
    jobs = [folder(tmp_path / f"w{n}") for n in range(20)]
    jobs += [
        folder(tmp_path / "f", failure={"error": "[red]no[/] </script>\nmore"}),
        folder(tmp_path / "r", started={}),
    ]
    found = [state_of(job) for job in jobs]
    console = Console(width=120, file=io.StringIO())
    console.print(table(found, most=4))
    text = console.file.getvalue()
    assert "job f" in text
    assert "job r" in text
    assert "[red]no[/] </script>" in text, "what a job says is text, not markup"
    assert text.count("job w") == 2
    assert (
        line(found, done_before=0, since=time.monotonic() - 60) == "1 running, 20 waiting, 1 failed; about 21 min left"
    )

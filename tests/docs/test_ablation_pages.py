"""The commands of docs/first_ablation.md and docs/sweeps.md can be started as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fuserl.settings import compose
from fuserl.sweeps.plan import planned

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("first_ablation.md", "sweeps.md")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh|text)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("fuserl ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


SWEEPS = [
    pytest.param(command, id=" ".join(command[:4]))
    for page in PAGES
    for command in commands(page)
    if "--multirun" in command
]


@pytest.mark.parametrize("command", SWEEPS)
def test_a_sweep_of_the_pages_can_be_started(command):
    verb, *overrides = (one for one in command if one != "--multirun")
    jobs = planned(verb, overrides).jobs
    if jobs is None:
        assert "sweep=optuna" in overrides
    else:
        assert len(jobs) >= 2


def test_the_first_sweep_is_twelve_jobs_that_the_second_command_compares():
    (verb, *sweep), (_, *compared) = [c for c in commands("first_ablation.md") if c[0] in ("pipeline", "compare")][:2]
    jobs = planned(verb, [one for one in sweep if one != "--multirun"]).jobs
    assert len(jobs) == 12
    assert {str(job.folder.parent) for job in jobs} == {"runs/first"}
    cfg = compose("compare", compared)
    assert list(cfg.runs) == ["runs/first"]
    assert any(cfg.baseline in job.label for job in jobs)

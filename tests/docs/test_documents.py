"""The documents are true: the worked example trains, links lead somewhere, every dependency has its reason."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from fuserl import settings
from fuserl.objectives.terms import GroupScores
from fuserl.training.prepare import build_objective
from fuserl.training.run import train

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
LINKS = [
    pytest.param(page, link, id=f"{page.relative_to(ROOT)} -> {link}")
    for page in PAGES
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
    if not link.startswith("http")
]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The two blocks of the page, saved where it says, and whatever follows from them."""
    page = (ROOT / "docs" / "writing_an_objective.md").read_text()
    (code,), (config,) = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "yaml"))
    (tmp_path / "my_objectives.py").write_text(code)
    shutil.copytree(settings.config_folder(), tmp_path / "conf")
    (tmp_path / "conf" / "objective" / "hinge.yaml").write_text(config)
    monkeypatch.setattr(settings, "config_folder", lambda: tmp_path / "conf")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_objectives", None)


def test_the_worked_example_keeps_what_every_objective_keeps(example):
    logps = torch.tensor([[-3.0, -5.0, -2.0, -9.0, -1.0]], dtype=torch.float64)
    scores = GroupScores(
        policy_logps=logps,
        reference_logps=logps + torch.tensor([[0.5, -0.5, 0.0, 1.0, 2.0]], dtype=torch.float64),
        num_tokens=torch.full((1, 5), 4),
        rewards=torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.5]], dtype=torch.float64),
        source=torch.tensor([[0, 0, 1, 1, 1]]),
        given=torch.full((1, 5), torch.nan, dtype=torch.float64),
        valid=torch.ones(1, 5, dtype=torch.bool),
    )
    cfg = settings.compose("train", ["objective=hinge", "weights=uniform"])
    hinge, _ = build_objective(cfg, scores, ("a", "b"))
    # Gaps: -0.5 - 0.5 = -1 inside the first source, -1.0 - 0.0 = -1 inside the second: 1 + 0.1 each, halves of it.
    assert hinge.loss(scores, progress=0.0).sum.item() == pytest.approx(1.1)
    assert hinge.select(scores).tolist() == [[True, True, True, True, False]]
    cut = scores._replace(valid=hinge.select(scores), policy_logps=logps.masked_fill(~hinge.select(scores), torch.nan))
    assert hinge.loss(cut, progress=0.0).sum.item() == pytest.approx(1.1)


def test_the_worked_example_trains(example):
    overrides = [
        *("objective=hinge", "objective.beta=0.3", "max_steps=2", "batch_size=8", "data.limit=16", "logger=csv"),
        *("data.validation_limit=8", "probe.prompts=0", "trainer.progress_bar=false", "trainer.accelerator=cpu"),
        *(f"output={example / 'run'}", f"cache={example / 'cache'}"),
    ]
    summary = json.loads((train(settings.compose("train", overrides)) / "summary.json").read_text())
    assert summary["objective"] == "hinge"
    assert summary["steps"] == 2


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
    ]
    (page,) = (ROOT / "docs" / "decisions").glob("*-dependencies.md")
    rows = {word for line in page.read_text().splitlines() for word in re.findall(r"[\w-]+", line) if "|" in line}
    assert {re.split(r"[\[<>=]", one)[0] for one in asked} <= rows

"""The commands of docs/evaluate.md run, in their order, and what the page says of their files holds."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
from pages import blocks, commands, words_of

from fuserl.cli import run_verb
from fuserl.evaluation.benchmarks import results
from fuserl.settings import config_folder, register_resolvers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluate.md").read_text()
SCORES = "def same(prompt, answer, reference):\n    return float(answer == reference)\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    (mine,) = blocks(PAGE, "jsonl")
    (tmp_path / "mine.jsonl").write_text(mine)
    (tmp_path / "my_scores.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FUSERL_CACHE", str(tmp_path / "cache"))
    register_resolvers()
    yield tmp_path
    sys.modules.pop("my_scores", None)


def test_the_whole_way(place):
    for line in commands(PAGE):
        run_verb(*words_of(line))
    final = place / "runs" / "recipe" / "02_po" / "evaluation"
    assert set(results.all_in(final)) == {"miniature", "own"}
    assert {path.name for path in final.iterdir()} >= {"answers.jsonl", "model.json", "summary.json", "config.yaml", "metrics.csv"}  # fmt: skip
    assert {path.name for path in (final / "own").iterdir()} >= {"graded.jsonl", "result.json", "graded"}
    report = (place / "runs" / "recipe" / "report.html").read_text(encoding="utf-8")
    assert "own reward" in report
    with (place / "runs" / "compared" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert {row["metric"] for row in rows} == {"evaluation/miniature"}
    for row in rows:
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])


def test_the_table_names_every_benchmark():
    table = PAGE[PAGE.index("| `benchmark=` |") : PAGE.index("`fuserl evaluate --help` lists them all")]
    named = set(re.findall(r"`([a-z0-9_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line)))
    assert named - {"benchmark="} == {path.stem for path in (config_folder() / "benchmark").glob("*.yaml")}

"""The commands of docs/compare.md run, and write what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pages import commands, words_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "evaluation"))

from fake_runs import write_run  # noqa: E402

from fuserl.cli import run_verb  # noqa: E402

PAGE = (ROOT / "docs" / "compare.md").read_text()


def test_the_commands_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        for name in ("sft_best", "fusesft"):
            write_run(tmp_path / "runs" / f"{name}{seed}", seed, {"objective.name": name}, nll=1 + 0.1 * seed)
    typed = commands(PAGE)
    assert len(typed) == 3
    for line in typed:
        verb, overrides = words_of(line)
        assert verb == "compare"
        run_verb(verb, [*overrides, "answers=0"])
    files = set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE))
    assert files == {"index.html", "table.csv", "runs.csv", "manifest.json"}
    for folder in ("comparison", "by_objective", "accuracy"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == files
    assert "best response only" in (tmp_path / "by_objective" / "table.csv").read_text()

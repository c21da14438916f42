"""The house keeps its own rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kit

SOURCES = sorted((kit.ROOT / "src").rglob("*.py"))


def test_imports_look_down_only():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=kit.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_alone_lists_the_targets():
    done = subprocess.run(["make"], cwd=kit.ROOT, capture_output=True, text=True)
    for target in ("setup", "demo", "test", "check", "bench", "notebooks", "clean"):
        assert target in done.stdout


def test_modules_stay_small():
    long = {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 320}
    assert not long, f"look at {long}"


def test_weights_and_data_are_never_unpickled():
    for path in SOURCES:
        text = path.read_text()
        assert "pickle" not in text.replace("allow_pickle=False", "").replace("through pickle", "").replace(
            "no pickle", ""
        ).replace("pickled weights", ""), path


def test_what_is_run_in_ci_is_what_the_readme_says():
    assert "make test" in (kit.ROOT / ".ci/run").read_text()
    assert "make demo" in (kit.ROOT / "README.md").read_text()

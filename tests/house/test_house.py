"""The house keeps its own rules."""

from __future__ import annotations

import ast
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
    """No module that runs pickles is imported, and no loader that may run one is called without the word against it."""
    runs_pickles = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not runs_pickles & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                against = "weights_only" if "torch" in ast.unparse(node.func) else "allow_pickle"
                assert said.get(against) in ("True" if against == "weights_only" else "False",), (
                    path,
                    ast.unparse(node),
                )


def test_what_is_run_in_ci_is_what_the_readme_says():
    assert "make test" in (kit.ROOT / ".ci/run").read_text()
    assert "make demo" in (kit.ROOT / "README.md").read_text()

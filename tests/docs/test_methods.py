"""`docs/methods.md` is true: functions import, tests and files exist, and nothing in `conf/` is left out."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`\s]+)`", TEXT)))
FUNCTIONS = [word for word in QUOTED if word.startswith("fuserl.")]
TESTS = [word for word in QUOTED if "::" in word]
FILES = [word for word in QUOTED if "/" in word and "::" not in word]
METHODS = [line for line in TEXT.splitlines() if line.startswith("|") and "`conf/" in line]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_exists(name: str) -> None:
    module, _, function = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", TESTS)
def test_test_exists(name: str) -> None:
    path, function = name.split("::")
    tree = ast.parse((ROOT / path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", FILES)
def test_file_exists(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("line", METHODS, ids=lambda line: line.split("|")[1].strip())
def test_a_method_is_a_whole_row_and_its_config_calls_its_function(line: str) -> None:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 5
    assert all(cells)
    function, config = cells[2].strip("`"), cells[4].strip("`")
    assert f"_target_: {function}\n" in (ROOT / config).read_text()
    assert "::" in cells[3]


def test_every_config_of_a_method_has_a_row() -> None:
    there = {
        str(path.relative_to(ROOT))
        for room in ("objective", "weights", "pairs", "merge", "divergence", "share")
        for path in (ROOT / "conf" / room).glob("*.yaml")
    }
    assert there == {line.rstrip("| ").rpartition("| ")[2].strip("`") for line in METHODS}

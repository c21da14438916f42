"""Pages on faults and security name tests that exist."""

from __future__ import annotations

import ast
import re

import kit

FAULTS = (kit.ROOT / "docs/faults.md").read_text(encoding="utf-8")
ROWS = [line for line in FAULTS.splitlines() if re.match(r"\| \d+ \|", line)]


def test_forty_faults_and_each_has_a_test_that_exists():
    assert len(ROWS) >= 40
    for number, line in enumerate(ROWS, 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert int(cells[0]) == number
        assert len(cells) == 4, line
        path, _, name = cells[3].strip("`").partition("::")
        tree = ast.parse((kit.ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, line


def test_no_fault_is_counted_twice():
    tests = [line.split("|")[4] for line in ROWS]
    assert len(set(tests)) == len(tests)


def test_files_that_the_pages_name_exist():
    for page in (FAULTS, (kit.ROOT / "SECURITY.md").read_text(encoding="utf-8")):
        for path in re.findall(r"`((?:tests|docs|src|conf)/[^`:]+\.\w+)", page):
            assert (kit.ROOT / path).exists(), path

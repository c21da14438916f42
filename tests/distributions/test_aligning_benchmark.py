"""The benchmark of aligning checks what it says, and finds a path that is another."""

from __future__ import annotations

import re
import sys

import kit
import numpy as np
import pytest

sys.path.append(str(kit.ROOT))

from benchmarks import aligning
from fuserl.distributions.alignment import of_path

PATHS = [[(0, 0), (1, 1), (1, 2)], [(0, 0)]]


def test_it_compares_all_responses_and_writes_its_table(tmp_path):
    kit.shared_data()
    aligning.main(["--size", "toy", "--responses", "8", "--steps", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("aligning_toy_cpu1_*.md")
    text = path.read_text()
    assert "equal on all 8 responses" in text
    assert "takes 48 bytes (vocabulary of Llama-2) or 68 (Qwen)" in text
    ways = re.findall(r"^\| (\S.*?) \| [\d.,]+ \| [\d.,]+ \| [\d,]+ \| ([\d.,]+) \|$", text, re.MULTILINE)
    assert [way for way, _ in ways][:3] == [
        "literal, its own edit distance", "literal, compiled edit distance", "**ours**",
    ]  # fmt: skip
    assert dict(ways)["**ours**"] == "1.0"


def test_another_path_is_found():
    found = [of_path(np.array(PATHS[0]), 2, 3), of_path(np.array(PATHS[1]), 1, 1)]
    assert aligning.require_equal(found, PATHS) == 2
    with pytest.raises(AssertionError, match="response 0 has another path"):
        aligning.require_equal(found, [[(0, 0), (0, 1), (1, 2)], PATHS[1]])
    with pytest.raises(ValueError, match="longer"):
        aligning.require_equal(found[:1], PATHS)

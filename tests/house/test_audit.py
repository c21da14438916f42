"""The offline audit finds what is not pinned, pinned otherwise, or pinned loosely; what fuserl imports is pinned."""

from __future__ import annotations

import re
import tomllib

import audit
import kit


def test_each_kind_of_problem_is_found_and_nothing_else():
    pinned, loose = audit.pins("a==1.0\n# note\nB_c==2.1  # why\nd>=3\n")
    assert pinned == {"a": "1.0", "b-c": "2.1"}
    assert loose == ["d>=3"]
    assert audit.problems({"a": "1.0+cpu", "b-c": "2.1"}, pinned, []) == []
    said = audit.problems({"a": "1.1", "x": "1"}, pinned, loose)
    assert [one.split("`")[1] for one in said] == ["d>=3", "a", "x"]


def test_everything_that_the_package_asks_for_is_pinned_exactly():
    project = tomllib.loads((kit.ROOT / "pyproject.toml").read_text())["project"]
    pinned, loose = audit.pins(audit.CONSTRAINTS.read_text())
    assert not loose
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {audit.key(match[0]) for one in wanted if (match := re.match(r"[A-Za-z0-9._-]+", one))} - {"fuserl"}
    assert names <= pinned.keys(), names - pinned.keys()

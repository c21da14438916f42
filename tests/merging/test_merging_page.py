"""The commands of docs/merging.md run, in their order, and leave what the page says."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from merging_kit import family

from fuserl.cli import run_verb
from fuserl.settings import config_folder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


def test_every_command_runs_and_leaves_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family(Path())
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        program, verb, *given = shlex.split(line)
        assert program == "fuserl"
        if find_spec("mergekit") or ("merge=ties" not in given and "merge=slerp" not in given):
            run_verb(verb, given)
    for name in ("coefficients.csv", "README.md", "manifest.json", "config.json"):
        assert (tmp_path / "merged" / name).exists(), name
        assert f"`{name}`" in PAGE
    assert (tmp_path / "half/model.safetensors").stat().st_size < (tmp_path / "merged/model.safetensors").stat().st_size


@pytest.mark.parametrize("method", sorted(path.stem for path in (config_folder() / "merge").glob("*.yaml")))
def test_every_method_is_on_the_page(method):
    assert f"`{method}`" in PAGE

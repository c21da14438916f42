"""Notebooks run from top to bottom, define nothing, and are stored without outputs."""

from __future__ import annotations

import ast
import json

import kit
import plotly.io as pio
import pytest

NOTEBOOKS = sorted((kit.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="session")
def fresh_cache(tmp_path_factory) -> str:
    """Runs and tokens of an earlier version must not stand in for this one's."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, fresh_cache, monkeypatch, capsys):
    monkeypatch.setenv("FUSERL_CACHE", fresh_cache)
    monkeypatch.setattr(pio, "show", lambda figure, *args, **kwargs: figure.to_json())
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    names: dict = {}
    for cell in cells:
        assert cell["outputs"] == []
        source = "".join(cell["source"])
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(source)))
        exec(compile(source, str(path), "exec"), names)
    assert capsys.readouterr().out

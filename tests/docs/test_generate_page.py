"""The commands of docs/generate.md run, in their order, on small models, and give what the page says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from openai_server import Server
from pages import blocks, commands, words_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from fuserl.cli import run_verb
from fuserl.records.formats import read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup
from fuserl.settings import compose, config_folder, register_resolvers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "generate.md").read_text()


def another(folder: Path, to: Path) -> None:
    """The same architecture with other weights: it says other things."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    target = ROOT / "src" / "fuserl" / "miniature" / "target"
    for name in ("small", "target"):
        shutil.copytree(target, tmp_path / "models" / name)
    another(target, tmp_path / "models" / "large")
    (prompts,) = blocks(PAGE, "jsonl")
    (tmp_path / "prompts.jsonl").write_text(prompts)
    rows = [
        {"id": f"q{n}", "question": json.loads(line)["prompt"], "final_answer": n}
        for n, line in enumerate(prompts.splitlines())
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSERL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    register_resolvers()
    return tmp_path


def groups(folder: str) -> list[PromptGroup]:
    return list(read_groups(folder, needs=Needs(text=False)))


def by_source(folder: str) -> dict[str, int]:
    return json.loads(Path(folder, "manifest.json").read_text())["sources"]


def test_the_commands_of_the_page(place):
    typed = commands(PAGE)
    assert len(typed) == 10
    seen = []
    with Server() as server:
        for line in typed:
            verb, overrides = words_of(re.sub(r"http://localhost:800[01]/v1", server.url, line))
            if verb == "train":
                overrides += ["trainer.accelerator=cpu", "trainer.progress_bar=false"]
            run_verb(verb, overrides)
            seen.append(by_source("answers"))
        asked = {call.body["model"] for call in server.calls}
    assert seen[0] == {"own": 15}
    assert seen[1] == {"large": 15, "own": 15}
    assert by_source("two") == by_source("mixed") == {"large": 6, "small": 6}
    assert by_source("servers") == {"one": 3, "two": 3}
    assert asked == {"models/large", "org/one", "org/two"}
    assert [(group.id, group.reference, group.domain) for group in groups("math")] == [
        ("q0", "0", "math"),
        ("q1", "1", "math"),
    ]
    assert by_source("answers") == {"large": 15, "own": 15, "target": 15}
    assert json.loads(Path("wrpo/summary.json").read_text())["objective"] == "wrpo"
    assert {path.name for path in Path("answers").iterdir() if path.suffix != ".parquet"} == {
        "manifest.json", "journal", "sources.json", "config.yaml", ".lock",
    }  # fmt: skip


def test_the_commands_for_large_machines_compose():
    lines = commands(PAGE, "console")
    assert lines
    for line in lines:
        verb, overrides = words_of(line)
        if (config_folder() / "engine" / "vllm.yaml").exists() or "engine=vllm" not in overrides:
            assert len(compose(verb, overrides).sources) == 4


def test_the_page_names_all_settings():
    """Every setting of the verb is on the page, or its comment in the file says all there is to say."""
    plainly = {"output", "format", "split", "limit", "on_bad_row", "domain"}
    cfg = compose("generate", ["data.path=x"])
    known = {*cfg, *cfg.data} - {"unsaid", "hydra", "path", "sources", "engine", "data"}
    assert all(name in PAGE for name in known - plainly), known

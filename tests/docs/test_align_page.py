"""The commands of docs/align.md run, in their order, and leave what the page says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from pages import commands, words_of
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from fuserl.cli import run_verb
from fuserl.distributions.store import Distributions
from fuserl.models.load import load_tokenizer
from fuserl.settings import compose
from fuserl.training.pipeline import jobs

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "align.md").read_text()
SHORT = (
    "data.validation_limit=8",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "max_steps=1",
    "probe.prompts=0",
    "logger=csv",
)
SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    tokenizer = load_tokenizer(str(ROOT / "src/fuserl/miniature/target"))
    for name, kind in (("gemma2", LlamaConfig), ("mistral", GPTNeoXConfig)):
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **SHAPE))
        model.save_pretrained(tmp_path / "models" / name)
        tokenizer.save_pretrained(tmp_path / "models" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSERL_CACHE", str(tmp_path / "cache"))


def test_every_command_runs_and_leaves_what_the_page_says(place, capsys):
    told = []
    for line in commands(PAGE):
        verb, overrides = words_of(line)
        run_verb(verb, [*overrides, *(SHORT if verb == "train" else ())])
        told.append(capsys.readouterr().err)
    assert len(told) == 5
    assert "read before" not in told[0]
    assert all(told[number].count("read before") == 3 for number in (2, 3)), "they run no model"
    assert {path.name for path in Path("aligned").iterdir()} == {
        "fused", "summary.json", "config.yaml", "begun.json", "manifest.json", ".lock",
    }  # fmt: skip
    assert {path.name for path in Path("aligned/fused").iterdir()} == {"all"}
    assert {path.name for path in Path("fusechat/fused").iterdir()} == {"gemma2", "mistral"}
    assert Distributions("aligned/fused/all").dtype.itemsize == 48
    assert len(Distributions("aligned/fused/all")) == 40
    assert set(json.loads(Path("ours/summary.json").read_text())["fused"][0]["weights"]) == {"target", "gemma2"}
    assert json.loads(Path("runs/distilled/summary.json").read_text())["objective"] == "distill"


def test_the_other_commands_compose():
    for line in commands(PAGE, "console"):
        program, *rest = shlex.split(line, comments=True)
        if program == "fuserl":
            cfg = compose(rest[0], rest[1:])
            assert cfg.sources if rest[0] == "align" else jobs(cfg)
        else:
            assert (ROOT / rest[0]).is_file()

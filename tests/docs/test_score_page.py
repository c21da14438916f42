"""The commands of docs/score.md run, in their order, on small models, and give what the page says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openai_server
import pytest
from openai_server import Server
from pages import blocks, commands, words_of
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from fuserl.cli import run_verb
from fuserl.records.store import iter_groups
from fuserl.settings import compose, register_resolvers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "score.md").read_text()
SCORES = "def brevity(prompt, answer, reference):\n    return -len(answer)\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    target = ROOT / "src" / "fuserl" / "miniature" / "target"
    config = AutoConfig.from_pretrained(target, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "models/reward")
    AutoTokenizer.from_pretrained(target).save_pretrained(tmp_path / "models/reward")
    (answers,) = blocks(PAGE, "jsonl")
    (tmp_path / "answers.jsonl").write_text(answers)
    (tmp_path / "my_scores.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(openai_server, "answer_to", says)
    register_resolvers()
    yield tmp_path
    sys.modules.pop("my_scores", None)


def says(body) -> tuple[str, str, int, int]:
    """A judge that has read neither question nor answer."""
    text = body["messages"][-1]["content"]
    return ("[[A]]" if "<answer A" in text else "Rating: [[6]]"), "stop", 1, 1


def found(folder: str) -> dict[str, list]:
    return {group.domain: list(group.responses) for group in iter_groups(Path(folder))}


def test_the_commands_of_the_page(place):
    typed = commands(PAGE)
    assert len(typed) == 9
    seen: list[dict[str, list]] = []
    with Server() as server:
        for line in typed:
            verb, overrides = words_of(line.replace("http://localhost:8000/v1", server.url))
            run_verb(verb, overrides)
            seen.append(found("scored") if Path("scored").exists() else {})

    assert [r.verdict for r in seen[0]["math"]][:3] == ["right", "wrong", "right"]
    assert {r.reward for r in seen[0]["instruction"]} == {None}
    assert all(set(r.extra["scores"]) == {"math", "reward_model"} for r in seen[1]["math"]), "the first scorer's stay"
    assert [r.verdict for r in seen[2]["math"]][:3] == ["right", "wrong", "right"]
    numbers = [r.extra["scores"]["reward_model"]["reward"] for r in seen[2]["math"]]
    assert [r.reward for r in seen[2]["math"]] == numbers
    assert numbers[3] is None, "the empty answer"

    assert [r.reward for r in found("brief")["instruction"]] == [-15, -6, -16, -14]
    mixed = [r.reward for r in found("mixed")["instruction"]]
    assert sum(mixed) == pytest.approx(0.0, abs=1e-6)
    assert [r.reward for r in found("verified")["math"]] == [
        r.extra["scores"]["math"]["reward"] for r in seen[2]["math"]
    ]
    ranked = found("ranked")["math"]
    assert max(r.reward for r in ranked if r.verdict == "wrong" and r.reward is not None) < min(
        r.reward for r in ranked if r.verdict == "right"
    )
    assert {r.reward for r in found("judged")["instruction"]} == {6.0}
    assert {r.reward for r in found("compared")["instruction"]} == {0.5}
    assert {path.name for path in Path("scored").iterdir() if path.suffix != ".parquet"} == {
        "manifest.json", "journal", "failures.jsonl", "config.yaml", ".lock",
    }  # fmt: skip
    assert (
        json.loads(Path("mixed/manifest.json").read_text())["extra"]["calibration"]["function"]["instruction"]["count"]
        == 4
    )


def test_the_commands_for_large_machines_compose():
    for line in commands(PAGE, "console"):
        verb, overrides = words_of(line)
        assert compose(verb, overrides).rewards

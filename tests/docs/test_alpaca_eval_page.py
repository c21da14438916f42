"""The commands of docs/alpaca_eval.md run, in their order, on small models, and give what the page says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import openai_server
import pytest
from openai_server import Server
from pages import blocks, commands, words_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fuserl.cli import run_verb
from fuserl.settings import compose

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "alpaca_eval.md").read_text()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    target = ROOT / "src" / "fuserl" / "miniature" / "target"
    for name, auto, more in (
        ("tiny", AutoModelForCausalLM, {}),
        ("reward", AutoModelForSequenceClassification, {"num_labels": 1}),
    ):
        auto.from_config(AutoConfig.from_pretrained(target, **more)).save_pretrained(tmp_path / "models" / name)
        AutoTokenizer.from_pretrained(target).save_pretrained(tmp_path / "models" / name)
    (mine,) = blocks(PAGE, "jsonl")
    (tmp_path / "mine.jsonl").write_text(mine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    plain = openai_server.completion

    def completion(body):
        good = plain(body)
        good["choices"][0]["message"]["content"] = "m"
        top = [{"token": "m", "logprob": math.log(0.7)}, {"token": "M", "logprob": math.log(0.3)}]
        good["choices"][0]["logprobs"] = {"content": [{"token": "m", "logprob": math.log(0.7), "top_logprobs": top}]}
        return good

    monkeypatch.setattr(openai_server, "completion", completion)
    return tmp_path


def result(folder: str) -> dict:
    return json.loads(Path(folder, "alpaca_eval", "result.json").read_text())


def test_the_commands_of_the_page(place):
    typed = commands(PAGE)
    assert len(typed) == 3
    with Server() as server:
        for line in typed:
            verb, overrides = words_of(line.replace("http://localhost:8000/v1", server.url))
            run_verb(verb, [*overrides, "benchmarks.alpaca_eval.length_control.resamples=20"])
        assert {call.body["model"] for call in server.calls} == {"org/judge"}
        assert len(server.calls) == 6
    judged, again, local = map(result, ("judged", "again", "local"))
    assert [one["value"] for one in again["numbers"]] == [one["value"] for one in judged["numbers"]]
    assert {one["name"] for one in judged["numbers"]} == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert all(one["name"].startswith("local_judge_") for one in local["numbers"][:-1])
    preferences = [row["preference"] for row in json.loads(Path("judged/alpaca_eval/annotations.json").read_text())]
    assert {round(p, 6) for p in preferences} <= {1.3, 1.7, 1.5}
    assert len(json.loads(Path("local/alpaca_eval/model_outputs.json").read_text())) == 6
    there = {path.name for path in Path("judged/alpaca_eval").iterdir()}
    assert {"result.json", "graded.jsonl", "model_outputs.json", "annotations.json", "judged"} <= there


def test_the_command_for_large_machines_composes(place):
    (line,) = commands(PAGE, "console")
    verb, overrides = words_of(line)
    assert compose(verb, overrides).benchmarks.alpaca_eval.sampling.temperature == 0.6

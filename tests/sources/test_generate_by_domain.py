"""How many samples a domain gets, and answers that the prompts bring with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.rows import Needs
from fuserl.settings import compose
from fuserl.sources.generate import generate

ROWS = [
    {
        "prompt_id": "m",
        "prompt": "one?",
        "domain": "math",
        "responses": [{"source": "given", "text": "1", "reward": 0.5}],
    },
    {"prompt_id": "c", "prompt": "two?", "domain": "code"},
    {"prompt_id": "z", "prompt": "three?", "domain": "chinese"},
]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*overrides: str):
        own = ("engine._target_=answering.AnsweringEngine", "+engine.log=log", "data.path=prompts.jsonl", "output=out")
        sources = "sources={b:{path:models/b},a:{path:models/a}}"
        folder = generate(compose("generate", [*own, sources, *overrides]))
        return {group.id: group.responses for group in read_groups(folder, needs=Needs(text=False))}

    return run


def counted(groups) -> dict[str, Counter]:
    return {name: Counter(response.source for response in responses) for name, responses in groups.items()}


def computed() -> int:
    return len(Path("log").read_text().splitlines())


def test_samples_by_domain(ask):
    found = counted(ask("+sources.a.samples={math: 3, otherwise: 1}", "+sources.b.samples={chinese: 2}"))
    assert found == {"m": Counter(a=3), "c": Counter(a=1), "z": Counter(a=1, b=2)}
    assert computed() == 7


def test_samples_grow_in_each_domain_for_itself(ask):
    first = ask("+sources.a.samples={math: 3, otherwise: 1}", "+sources.b.samples={chinese: 2}")
    grown = ask("+sources.a.samples=2", "+sources.b.samples={code: 1}")
    assert counted(grown) == {"m": Counter(a=3), "c": Counter(a=2, b=1), "z": Counter(a=2, b=2)}
    assert computed() == 7 + 3
    assert first["m"] == grown["m"]


@pytest.mark.parametrize("samples", ["0", "{math: -1}", "{math: 0}", "{}", "{math: 1.5}", "many"])
def test_a_number_of_samples_that_is_none(ask, samples):
    with pytest.raises(FuserlError, match="`samples` is"):
        ask(f"+sources.a.samples={samples}")


def test_answers_that_stand_in_the_data_are_kept_where_asked(ask):
    groups = ask("samples=2", "data.keep_responses=true")
    assert counted(groups) == {"m": Counter(given=1, a=2, b=2), "c": Counter(a=2, b=2), "z": Counter(a=2, b=2)}
    assert groups["m"][0].reward == 0.5
    assert counted(ask("samples=2"))["m"] == Counter(a=2, b=2)
    assert computed() == 12, "the answers are the same ones"


def test_a_source_cannot_have_the_name_of_one_that_stands_in_the_data(ask):
    with pytest.raises(FuserlError, match="answers of `given` already"):
        ask("+sources.given={path: models/a}", "data.keep_responses=true")
    assert not Path("log").exists()

"""The commands of docs/judges.md run, in their order, and give what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai_server
import pytest
from openai_server import Server
from pages import commands, words_of

from fuserl.cli import run_verb
from fuserl.settings import config_folder, register_resolvers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text()
COMMANDS = commands(PAGE)


def says(body) -> tuple[str, str, int, int]:
    """A model of few words; a judge who finds what stands first somewhat better."""
    text = body["messages"][-1]["content"]
    judged = "[[A>B]]" if "<answer A" in text else "Rating: [[6]]"
    return (judged if body["model"] == "judge-1" else "Honey."), "stop", 1, 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the page speaks of."""
    for name, content in re.findall(r"^```jsonl (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(openai_server, "answer_to", says)
    register_resolvers()
    return tmp_path


def test_the_commands_of_the_page(place, monkeypatch):
    found = {}
    with Server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for command in COMMANDS:
            before = len(server.calls)
            verb, overrides = words_of(command)
            run_verb(verb, overrides)
            found[re.findall(r"output=(\w+)", command)[0], re.findall(r"benchmark=(\w+)", command)[0]] = (
                len(server.calls) - before
            )
    assert found == {
        ("evaluated", "arena_hard"): 3 + 6,
        ("counted", "arena_hard"): 0,
        ("evaluated", "mt_bench"): 4 + 4,
        ("counted", "mt_bench"): 0,
    }
    told, counted, turns = (
        {number["name"]: number for number in json.loads((place / folder / "result.json").read_text())["numbers"]}
        for folder in ("evaluated/arena_hard", "counted/arena_hard", "evaluated/mt_bench")
    )
    assert told == counted
    assert told["win_rate"]["value"] == pytest.approx(50.0)
    assert (told["win_rate_standing_first"]["value"], turns["score"]["value"]) == (100.0, 6.0)
    rows = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert set(rows) - {"win_rate_standing_first"} <= told.keys() | turns.keys(), (
        "the page's tables name what comes out"
    )
    assert told.keys() | turns.keys() <= {
        *rows,
        *re.findall(r"`(\w+)`", PAGE),
        "win_rate_standing_second",
        "score/math",
        "score/writing",
    }


def test_the_settings_that_the_page_names_are_there():
    arena = (config_folder() / "benchmark/arena_hard.yaml").read_text()
    assert "path: gpt-4-1106-preview" in arena
    assert "gpt-4-0314.jsonl" in arena
    assert "strong: 3 " in arena
    assert "path: gpt-4-0125-preview" in (config_folder() / "benchmark/mt_bench.yaml").read_text()

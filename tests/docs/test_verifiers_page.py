"""The commands of docs/verifiers.md run, and give what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import blocks, commands, words_of

from fuserl.cli import run_verb
from fuserl.records.store import iter_groups
from fuserl.rewards import sandbox
from fuserl.rewards.constraints import RULES
from fuserl.settings import compose, config_folder, register_resolvers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verifiers.md").read_text()
VERDICTS = {
    "math": {"apples": ["right", "right", "wrong"]},
    "after": {"apples": ["right", "wrong", "wrong"]},
    "code": {"twice": ["right", "wrong", "wrong"], "sum": ["right", "wrong"]},
    "format": {"short": ["right", "wrong"]},
    "literal": {"slice": ["right", "wrong"]},
}


COMMANDS = commands(PAGE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page(line, tmp_path, monkeypatch, capsys):
    verb, overrides = words_of(line)
    if "reward=code" in overrides and not sandbox.bubblewrap()[0]:
        pytest.skip(f"NO SANDBOX HERE: {sandbox.bubblewrap()[1]}")
    (answers,) = blocks(PAGE, "jsonl")
    (tmp_path / "answers.jsonl").write_text(answers)
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    run_verb(verb, overrides)
    if verb == "doctor":
        assert "walls hold" in capsys.readouterr().out or not sandbox.bubblewrap()[0]
        return
    folder = next(word.removeprefix("output=") for word in overrides if word.startswith("output="))
    found = {group.id: [response.verdict for response in group.responses] for group in iter_groups(tmp_path / folder)}
    assert {name: verdicts for name, verdicts in found.items() if set(verdicts) != {None}} == VERDICTS[folder]


def test_every_command_has_its_verdicts():
    words = [word for line in COMMANDS for word in words_of(line)[1]]
    folders = {word.removeprefix("output=") for word in words if word.startswith("output=")}
    assert folders == set(VERDICTS)


@pytest.mark.parametrize(("group", "reward", "key"), [("answer", "math", "answer"), ("program", "code", "program")])
def test_the_page_names_every_way(group, reward, key):
    for path in (config_folder() / group).glob("*.yaml"):
        assert re.search(rf"\| [^|]*`{path.stem}`[^|]*\|", PAGE), f"{group}={path.stem}"
        marker = ["rewards.math.answer.marker=has"] if path.stem == "after" else []
        cfg = compose(
            "score", ["data.path=x", f"reward={reward}", f"{group}@rewards.{reward}.{key}={path.stem}", *marker]
        )
        assert cfg.rewards[reward][key]._target_.startswith("fuserl.rewards.")


def test_the_page_counts_rightly():
    assert f"The {len(RULES)} verifiable constraints" in PAGE

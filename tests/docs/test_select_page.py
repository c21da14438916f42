"""The commands of docs/select.md run, in their order, and leave what the page says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from curation.select_kit import group, groups_of, lay, report, world
from pages import commands, words_of

from fuserl.cli import run_verb

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "select.md").read_text()
COMMANDS = commands(PAGE)
SHORT = (
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "max_steps=1",
    "probe.prompts=0",
    "logger=csv",
    "data.max_length=4096",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data sets that the page speaks of."""
    folder = tmp_path_factory.mktemp("page")

    def data_set(name: str, groups) -> None:
        (folder / name).mkdir()
        lay(groups, folder / name / "train.jsonl.gz")

    groups = world(50, samples=2)
    data_set("scored", groups)
    own = [replace(one, responses=group(n + 5000, sources=["me"], samples=2).responses) for n, one in enumerate(groups)]
    data_set("own_samples", own)
    data_set("ultrafeedback", [replace(one, id=f"u{one.id}") for one in world(120, samples=2)[::4]])
    data_set("openmath", [replace(one, id=f"m{one.id}") for one in world(120, samples=2)[1::4]])
    (folder / "eval").mkdir()
    question = next(one for one in groups if one.id == "q8").prompt[0].content
    row = {"question": question + " And show how you found it.", "id": "gsm8k-test-0"}
    (folder / "eval" / "gsm8k_test200.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_every_command_runs_and_leaves_what_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FUSERL_CACHE", str(folder / "cache"))
    assert len(COMMANDS) == 14
    for line in COMMANDS:
        verb, overrides = words_of(line)
        run_verb(verb, [*overrides, *(SHORT if verb == "train" else ())])
    for name in ("sft/train", "sft/validation", "po/train", "report.html", "report.json", "dropped.jsonl"):
        assert (folder / "selected" / name).exists(), name
        assert name.split("/")[0] in PAGE
    assert json.loads((folder / "runs/dpo/summary.json").read_text())["prompts"] > 0
    steps = {name: [entry["step"] for entry in report(folder / name)["steps"]] for name in ("kept", "paired", "clean")}
    assert steps["kept"][1:-1] == [
        "empty",
        "truncated",
        "wrong_language",
        "duplicate_prompts",
        "duplicate_responses",
        "length",
    ]
    assert "at_least" in steps["paired"]
    assert report(folder / "clean")["findings"]["contaminated"]["matches"]
    assert "q8" in {
        json.loads(line)["prompt_id"]
        for line in (folder / "clean/dropped.jsonl").read_text().splitlines()
        if "contaminated" in line
    }
    assert {len(one.responses) for one in groups_of(folder / "quadruples/po/train")} == {3}
    assert report(folder / "mixed")["sides"]["po/train"]["mixture"]["math"][0] == 10
    assert set(report(folder / "mixed")["clean"]["prompts"]) == {"instruction", "math"}
    assert (folder / "shared/trl/train.jsonl").stat().st_size

"""What `select` leaves is what `fuserl train` takes, without data.part, and TRL's pairs are the same."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from curation.select_kit import groups_of, lay, report, run

from fuserl.miniature import __file__ as miniature
from fuserl.records.formats import read_groups
from fuserl.settings import compose
from fuserl.training.prepare import Prepared
from fuserl.training.setup import data_of


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch):
    """The page has tests of its own, and takes its time."""
    monkeypatch.setattr("fuserl.curation.select.page", lambda report, path: None)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature")
    groups = read_groups(miniature.replace("__init__.py", "data"), split="train")
    return lay(islice(groups, 100), folder / "in.jsonl")


def prepared(tmp_path, data, *more: str) -> Prepared:
    """What training makes of a data set before its first step."""
    cfg = compose("train", ["data=own", "trainer.progress_bar=false", f"data.path={data}", f"cache={tmp_path}", *more])
    return data_of(cfg, "cpu")[2]


STAGES = [
    ("protocol=fuserl", "sft", "objective=fusesft"),
    ("protocol=fuserl", "po", "objective=fusepo_dpo"),
    ("po=groups", "po", "objective=fusepo_rloo"),
    ("po.max_gap=0.9", "po", "objective=dpo_best"),
]


@pytest.mark.parametrize(("protocol", "side", "objective"), STAGES)
def test_training_takes_every_prompt_that_was_selected(path, tmp_path, protocol, side, objective):
    folder = run(f"data.path={path}", f"output={tmp_path / 'out'}", "rules=none", "validation_fraction=0.1", protocol)
    found, groups = prepared(tmp_path, folder / side, objective), groups_of(folder / side / "train")
    kept = sum(report(folder)["sides"][f"{side}/train"]["kept"]["prompts"].values())
    assert len(found.train.plan.rows) == len(groups) == kept > 10
    assert len(found.validation.plan.rows) == len(groups_of(folder / side / "validation")) > 0
    assert found.left_out == {}
    num_responses = sum(len(one.responses) for one in groups)
    if protocol == "po=groups":  # sources without signal stay, and the loss masks them
        assert found.train.used.sum() <= num_responses
    else:
        assert found.train.used.sum() == num_responses


def test_quadruples_train_wrpo(path, tmp_path):
    folder = run(
        f"data.path={path}", f"output={tmp_path / 'out'}", "rules=none", "protocol=wrpo", "target_source=qwen2"
    )
    groups = groups_of(folder / "po/train")
    assert {len(one.responses) for one in groups} == {3}
    assert all(r.source != "qwen2" for one in groups_of(folder / "sft/train") for r in one.responses)
    found = prepared(tmp_path, folder / "po", "objective=wrpo", "target_source=qwen2")
    assert (len(found.train.plan.rows), found.left_out) == (len(groups), {})
    assert found.train.used.sum() == 3 * len(groups)


def test_the_pairs_for_trl_are_those_that_were_selected(path, tmp_path):
    folder = run(
        f"data.path={path}",
        f"output={tmp_path / 'out'}",
        "rules=none",
        "po.among=across_sources",
        "po.max_gap=0.7",
        "trl=true",
    )
    told = report(folder)
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / "trl" / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == told["trl_pairs"][split] == sum(told["sides"][f"po/{split}"]["num_pairs"].values())
        by_prompt = {one.prompt[0].content: one for one in groups_of(folder / "po" / split)}
        for row in rows:
            one = by_prompt[row["prompt"][0]["content"]]
            best, worst = sorted(one.responses, key=lambda r: -(r.reward or 0.0))
            assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (best.text, worst.text)

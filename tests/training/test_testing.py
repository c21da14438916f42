"""The test after the last step: one row an answer, means that are those of the rows, mistakes told before training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fuserl.errors import FuserlError
from fuserl.evaluation.answering import scores_by_prompt
from fuserl.miniature.tasks import score

ASKED = ("test.split=test", "test.samples=2", "probe.max_new_tokens=4", "max_steps=1")


def test_every_prompt_is_answered_and_graded(run):
    folder = run("fusesft", *ASKED, "probe.score=fuserl.miniature.tasks.score")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 1600
    assert all(row["score"] == score(row["prompt"], row["answer"], None) for row in rows)
    told = json.loads((folder / "summary.json").read_text())["test"]
    assert (told["split"], told["prompts"], told["samples"]) == ("test", 800, 2)
    assert told["score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert told["score"] == pytest.approx(scores_by_prompt(rows).mean())
    for domain, value in told["by_domain"].items():
        assert value == pytest.approx(np.mean([row["score"] for row in rows if row["domain"] == domain]))


def test_without_a_scorer_answers_are_kept_without_scores(run):
    folder = run("fusesft", *ASKED)
    told = json.loads((folder / "summary.json").read_text())["test"]
    assert told["score"] is None
    assert told["by_domain"] == {}
    assert told["tokens"] > 0


@pytest.mark.parametrize(
    ("setting", "where"),
    [("test.split=tset", "test.split"), ("test.split=train", "test.split"), ("test.split=validation", "test.split"), ("probe.score=no.such", "probe.score")],
)  # fmt: skip
def test_a_mistake_is_told_before_training(run, tmp_path, setting, where):
    with pytest.raises(FuserlError) as caught:
        run("fusesft", "test.split=test", setting)
    assert caught.value.where == f"`{where}`"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_without_test_says_so(run):
    folder = run("fusesft", "max_steps=1")
    assert json.loads((folder / "summary.json").read_text())["test"] is None
    assert not (folder / "test.jsonl").exists()

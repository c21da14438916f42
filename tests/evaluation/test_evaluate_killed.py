"""SIGKILL at any moment of an evaluation: nothing that was answered is asked again, and the result is the undisturbed one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from forking import Nursery

from fuserl.evaluation.benchmarks import results

KILLS, PROMPTS, TOGETHER = 12, 60, 4
ASKED = ["model=models/a", "benchmark=[own]", "benchmarks.own.questions.path=q.jsonl", "benchmarks.own.samples=2",
         "benchmarks.own.graders.own.path=graded_here.score", "decoding.greedy.max_tokens=8",
         "engine._target_=answering.AnsweringEngine", f"+engine.together={TOGETHER}"]  # fmt: skip


@pytest.fixture
def nursery(tmp_path):
    rows = [{"prompt_id": f"p{n}", "prompt": f"What is {n}?"} for n in range(PROMPTS)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "graded_here.py").write_text("def score(prompt, answer, reference):\n    return len(set(answer)) / 9\n")
    nursery = Nursery(tmp_path, "fuserl.evaluation.evaluate", "pyarrow.parquet", "answering",
                      paths=[Path(__file__).parents[1], tmp_path])  # fmt: skip
    yield nursery
    nursery.close()


def test_killed_often(nursery, tmp_path):

    assert nursery.run("evaluate", [*ASKED, "output=undisturbed"])
    slowly = [*ASKED, "output=out", "+engine.log=log", "+engine.seconds=0.02"]
    chance, kills = random.Random(0), 0
    while kills < KILLS:
        kills += not nursery.run("evaluate", slowly, kill_after=chance.uniform(0, 0.5))
        if (tmp_path / "out" / "summary.json").exists():
            break
    assert nursery.run("evaluate", slowly)
    computed = Counter(line.split()[1] for line in (tmp_path / "log").read_text().splitlines())
    assert len(computed) == 2 * PROMPTS
    assert computed.total() <= 2 * PROMPTS + KILLS * TOGETHER, "only those under way at a kill are computed again"
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    assert results.read(out / "own").numbers == results.read(undisturbed / "own").numbers
    assert results.graded(out / "own") == results.graded(undisturbed / "own")
    assert json.loads((out / "summary.json").read_text()) == json.loads((undisturbed / "summary.json").read_text())

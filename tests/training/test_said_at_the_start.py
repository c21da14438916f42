"""What a run says of its data and settings before the first step, and keeps in its summary."""

from __future__ import annotations

import json

import pytest
import torch

from fuserl.objectives.terms import Pairs
from fuserl.tokens.store import VERDICT
from fuserl.training.metrics import chosen_not_good

NONE, RIGHT, WRONG, UNKNOWN = (VERDICT[name] for name in (None, "right", "wrong", "unknown"))
CASES = {  # chosen verdicts, chosen rewards, threshold, share
    "verdicts": ([RIGHT, WRONG, UNKNOWN, RIGHT], [0.0] * 4, None, 0.5),
    "a threshold": ([NONE] * 4, [0.1, 0.5, 0.9, 0.49], 0.5, 0.5),
    "either is enough": ([RIGHT, RIGHT, WRONG, NONE], [0.1, 0.9, 0.9, 0.9], 0.5, 0.5),
    "pairs without verdict do not count": ([NONE, NONE, WRONG, RIGHT], [0.0] * 4, None, 0.5),
    "nothing to judge by": ([NONE] * 4, [0.1] * 4, None, None),
    "a threshold of zero is one": ([NONE] * 4, [-1.0, -1.0, -1.0, 0.0], 0, 0.75),
}


@pytest.mark.parametrize("name", CASES)
def test_the_share_of_pairs_that_prefer_an_answer_that_is_not_good(name):
    verdicts, rewards, threshold, share = CASES[name]
    column = torch.tensor([[1], [1], [0], [0]])  # where the chosen answers stand; the others must not matter
    other = torch.tensor([[WRONG, WRONG], [RIGHT, RIGHT], [NONE, NONE], [WRONG, RIGHT]])
    verdict = other.scatter(1, column, torch.tensor(verdicts)[:, None])
    reward = torch.full((4, 2), -9.0).scatter(1, column, torch.tensor(rewards)[:, None])
    pairs = Pairs(column, 1 - column, torch.ones(4, 1), torch.ones(4, 1, dtype=torch.bool))
    assert chosen_not_good(pairs, verdict, reward, good_reward=threshold) == share
    twice = Pairs(*(torch.cat([part, part], 1) for part in pairs[:3]), torch.tensor([[True, False]]).expand(4, 2))
    assert chosen_not_good(twice, verdict, reward, good_reward=threshold) == share, "invalid pairs do not count"
    none = pairs._replace(valid=torch.zeros(4, 1, dtype=torch.bool))
    assert chosen_not_good(none, verdict, reward, good_reward=threshold) is None


@pytest.fixture
def graded(tmp_path):
    """Six prompts of two sources; the better answer of source `a` is right in four, of `b` in none."""
    rows = []
    for number in range(6):
        answers = [
            {"source": source, "sample": sample, "text": f"{10 + number + 20 * sample}", "reward": reward,
             "verdict": "right" if source == "a" and sample == 0 and number < 4 else "wrong"}
            for source in "ab"
            for sample, reward in enumerate((0.9, 0.2))
        ]  # fmt: skip
        rows.append({"prompt_id": f"p{number}", "prompt": f"pair {number + 30}", "responses": answers})
    path = tmp_path / "graded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=own", f"data.path={path}", "data.validation_fraction=0", "max_steps=1", "batch_size=6"]


def test_a_run_says_it_and_keeps_it(run, graded, capfd):
    folder = run("fusepo_dpo", *graded)
    said = capfd.readouterr().err
    assert json.loads((folder / "summary.json").read_text())["pairs_chosen_not_good"] == pytest.approx(8 / 12)
    assert "66.7% of the judged pairs prefer an answer that is not good" in said
    assert said.count("caution: `objective.beta=0.01` is per nat a token") == 1, "normalize=length with a sum's beta"
    folder = run("fusepo_dpo", *graded, "data.good_reward=0.95", "objective.beta=10", output="strict")
    assert json.loads((folder / "summary.json").read_text())["pairs_chosen_not_good"] == 1.0
    assert "caution" not in capfd.readouterr().err


def test_an_objective_without_pairs_has_no_such_share(run, graded, capfd):
    folder = run("fusesft", *graded)
    assert json.loads((folder / "summary.json").read_text())["pairs_chosen_not_good"] is None
    assert "not good" not in capfd.readouterr().err

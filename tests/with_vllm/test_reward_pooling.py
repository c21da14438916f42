"""Reward models in a real vLLM: the numbers are those of transformers."""

from __future__ import annotations

import sys
from random import Random

import kit
import pytest

sys.path.insert(0, str(kit.ROOT / "tests/rewards"))

import tiny_rewards

TEXTS = [
    "4",
    "a <end> trick",
    "because 2 + 2 = 4",
    *("".join(Random(n).choices("abc def", k=9 * n)) for n in range(1, 12)),
]


def test_numbers_agree_with_a_plain_forward(tmp_path):
    shape = {
        "hidden_size": 128,
        "head_dim": 32,
        "vocab_size": 128,
    }  # heads of 32: the smallest that vLLM's kernels on CPU know
    folder = tiny_rewards.save("llama", tmp_path / "llama", **shape)
    chosen = "classifier@.classifier=vllm", "rewards.reward_model.classifier.enforce_eager=true"
    scorer = tiny_rewards.load(folder, *chosen, "rewards.reward_model.max_length=200")
    asked = tiny_rewards.items(TEXTS)
    ids = [one.ids for one in scorer.form.encode([(item.group.prompt, item.response.text) for item in asked])]
    expected = [tiny_rewards.oracle(folder, row) for row in ids]
    try:
        found = {one.key: one.reward for one in scorer.score(asked)}
    finally:
        scorer.close()
    assert max(expected) - min(expected) > 0.5
    assert [found[str(n)] for n in range(len(TEXTS))] == pytest.approx(expected, abs=1e-3)
    assert scorer.identity()["classifier"]["by"] == "vllm"

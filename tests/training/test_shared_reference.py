"""What runs share of the reference: everything but what decides its numbers."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from transformers import AutoModelForCausalLM, LlamaConfig

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.settings import compose


def stats(folder: Path) -> tuple[int, int]:
    found = json.loads((folder / "summary.json").read_text())["reference_cache"]
    return found["hits"], found["misses"]


def entries(cache: Path) -> list[tuple]:
    """(key, sum, count, log-probs a token) of every reference cache of a folder."""
    found = []
    for path in sorted((cache / "reference").glob("*.sqlite")):
        with sqlite3.connect(path) as database:
            found += database.execute("SELECT key, logps, num_tokens, tokens FROM logps")
        database.close()
    return found


def test_a_sweep_computes_the_reference_once(run, tmp_path):
    first = run("fusepo_dpo", output="first")
    hits, misses = stats(first)
    assert hits + misses > 0
    assert len(entries(tmp_path / "cache")) == misses
    for number, (objective, way) in enumerate(
        [
            ("fusepo_dpo", ("objective.beta=0.3",)),
            ("fusepo_dpo", ("optimizer.lr=1e-3", "batch_size=8")),
            ("fusepo_dpo", ("weights.tau=2.0",)),
            ("dpo_best", ()),
            ("fusepo_dpo", ("trainer.max_tokens=200",)),
        ]
    ):
        assert stats(run(objective, *way, output=f"job{number}"))[1] == 0, way


def test_one_more_source_computes_its_responses_only(run, tmp_path):
    sources = sorted(source_names())
    fewer = run("fusepo_dpo", f"data.sources=[{','.join(sources[:-1])}]", output="fewer")
    every = run("fusepo_dpo", output="every")
    assert stats(every)[0] > 0
    assert stats(every)[1] > 0
    assert stats(fewer)[1] + stats(every)[1] == len(entries(tmp_path / "cache"))


def source_names() -> set[str]:
    return {r.source for group in read_groups(compose("train", []).data.path, split="train") for r in group.responses}


def test_two_ranks_compute_nothing_twice(run, tmp_path):
    folder = run("fusepo_dpo", "trainer.devices=2", output="two")
    assert sum(stats(folder)) == len(entries(tmp_path / "cache"))
    again = run("fusepo_dpo", output="one")
    assert stats(again)[1] == 0
    ours, theirs = weights(folder), weights(again)
    assert ours.keys() == theirs.keys()
    for name in ours:  # tests/training/test_equivalent_runs.py has several packs a rank
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-8, atol=1e-9)


def test_log_probs_a_token_are_kept_on_request(run, tmp_path):
    run("fusepo_dpo", output="sums")
    assert all(row[3] is None for row in entries(tmp_path / "cache"))
    run("fusepo_dpo", "reference.per_token=true", output="tokens")
    rows = entries(tmp_path / "cache")
    for _, logps, num_tokens, blob in rows:
        tokens = np.frombuffer(blob[:-4], np.float64)  # a sum follows
        assert len(tokens) == num_tokens
        assert tokens.sum() == pytest.approx(logps, rel=1e-9)
    with pytest.raises(FuserlError, match="of packs only"):
        run("fusepo_dpo", "reference.per_token=true", "trainer.packing=padded", output="padded")


def test_another_model_as_the_reference(run, target, tmp_path):
    """Its own weights decide, not the folder: a copy hits, a change misses; another vocabulary is refused."""
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(target)
    model.save_pretrained(other)
    first = run("fusepo_dpo", output="itself")
    assert stats(run("fusepo_dpo", f"reference.path={other}", output="copy")) == (sum(stats(first)), 0)
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data.mul_(1.1)
    model.save_pretrained(other)
    loose = "trainer.first_step_tolerance=100"
    changed = run("fusepo_dpo", f"reference.path={other}", loose, output="changed")
    assert stats(changed) == (0, sum(stats(first)))
    AutoModelForCausalLM.from_config(LlamaConfig(**kit._SHAPE | {"vocab_size": 16})).save_pretrained(other)
    with pytest.raises(FuserlError, match="another model's tokenizer"):
        run("fusepo_dpo", f"reference.path={other}", output="vocabulary")

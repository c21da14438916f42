"""Ways of running that must not matter: each reaches the same weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py

WAYS = {
    "small packs": ("trainer.max_tokens=200",),
    "padded": ("trainer.packing=padded",),
    "padded, small packs": ("trainer.packing=padded", "trainer.max_tokens=300"),
    "two ranks, small packs": ("trainer.devices=2", "trainer.max_tokens=200"),
    "loader processes": ("trainer.num_workers=1",),
    "narrow head": ("trainer.logits_memory=1e-6",),
    "checkpointed activations": ("target.checkpointing=full",),
    "selectively checkpointed activations": ("target.checkpointing=selective",),
}


def assert_same(ours: Path, theirs: Path, **tolerance) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo", "fusepo_rloo"])
def test_way_of_running_does_not_matter(objective, run):
    plain = run(objective, output="plain")
    chosen = WAYS if objective == "fusepo_dpo" else {k: WAYS[k] for k in ("small packs", "padded")}
    for number, (name, way) in enumerate(chosen.items()):
        other = run(objective, *way, output=f"way{number}")
        assert_same(other, plain, rtol=1e-8, atol=1e-9)
        ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (other, plain))
        assert ours["last_train_loss"] == pytest.approx(theirs["last_train_loss"], rel=1e-8), name
        assert ours["validation"]["val/nll"]["last"] == pytest.approx(theirs["validation"]["val/nll"]["last"], rel=1e-8)


def test_a_cached_reference_does_not_matter(run, tmp_path):
    first = run("fusepo_dpo", output="first")
    again = run("fusepo_dpo", "optimizer.weight_decay=0", output="again")
    other_cache = run("fusepo_dpo", f"cache={tmp_path / 'cache2'}", output="other")
    stats = [json.loads((f / "summary.json").read_text())["reference_cache"] for f in (first, again, other_cache)]
    assert stats[0]["misses"] > 0
    assert stats[1]["misses"] == 0
    assert stats[1]["hits"] == stats[0]["misses"] + stats[0]["hits"]
    assert stats[2]["misses"] == stats[0]["misses"]
    assert_same(again, first, rtol=0, atol=0)
    assert_same(other_cache, first, rtol=0, atol=0)


def test_the_order_of_prompts_changes_the_run_but_the_seed_fixes_it(run):
    one, same, other = run("fusesft", output="a"), run("fusesft", output="b"), run("fusesft", "seed=1", output="c")
    assert_same(one, same, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_lora_starts_from_its_reference_and_merges(run, target):
    lora = "target.lora={r: 4, target_modules: [query_key_value]}"
    folder = run("fusepo_dpo", lora, "trainer.first_step_tolerance=1e-9", output="lora")
    moved = [name for name, weight in weights(folder).items() if not torch.equal(weight, weights_of(target)[name])]
    assert moved
    assert all("query_key_value.weight" in name for name in moved)
    assert (folder / "adapter" / "adapter_config.json").exists()
    second = run(
        "fusepo_dpo", lora, f"target.path={folder / 'adapter'}", "trainer.first_step_tolerance=1e-9", output="on_top"
    )
    assert (second / "model" / "model.safetensors").exists()


def weights_of(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_strategy_for_many_leaves_nothing_behind_with_one(strategy, run, monkeypatch):
    """Neither a process group nor an environment in which the next run would take itself for a rank."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # a cluster's, and still there afterwards
    before = dict(os.environ)
    first = run("fusesft", f"trainer={strategy}", output="first")
    assert not torch.distributed.is_initialized()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    left = os.environ.keys() - before.keys()
    assert not left & {"LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
    assert_same(run("fusesft", output="second"), first, rtol=0, atol=1e-9)

"""Ways of running that must not matter: each reaches the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from forking import Nursery

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


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are killed."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), "fuserl.training.run", "transformers.models.gpt_neox")
    yield nursery
    nursery.close()


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


@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo"])
def test_killed_twice_and_resumed_gives_the_same_bits(objective, run, settings, nursery, tmp_path):
    longer = ("max_steps=20", "trainer.max_tokens=200")
    plain = run(objective, *longer, output="plain")
    killed = tmp_path / "killed"
    for at_least in (3, 9):
        nursery.run(
            "train",
            settings(objective, *longer, output="killed"),
            kill_when=lambda least=at_least: _step(killed) >= least,
        )
        assert at_least <= _step(killed) < 20
    assert not (killed / "summary.json").exists(), "the run was over before it was killed"
    finished = run(objective, *longer, output="killed")
    assert_same(finished, plain, rtol=0, atol=0)
    ours, theirs = ((f / "metrics.csv").read_text().splitlines() for f in (finished, plain))
    assert [line.split(",")[0] for line in ours] == [line.split(",")[0] for line in theirs]


def _step(folder: Path) -> int:
    return max((int(p.stem.split("-")[1]) for p in folder.glob("checkpoints/step-*.ckpt")), default=0)


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

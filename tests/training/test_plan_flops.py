"""Useful FLOPs: the formula against torch's own counter and against pairs counted one by one."""

from __future__ import annotations

import kit
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

from fuserl.errors import FuserlError
from fuserl.models import load
from fuserl.models.layout import PackLayout, may_attend
from fuserl.settings import config_folder
from fuserl.tokens.plan import GroupCosts, make_plan
from fuserl.training import hardware
from fuserl.training.datamodule import Split
from fuserl.training.flops import (
    Products,
    Work,
    flops_of_step,
    forward_flops,
    recomputed_flops,
    training_flops,
    work_by_row,
    work_of_run,
    work_of_step,
)
from fuserl.training.hardware import Hardware

PRESETS = sorted(path.stem for path in (config_folder() / "hardware").glob("*.yaml"))
ADAPTERS = {"r": 4, "target_modules": "all-linear"}
LENGTH = 32


def eager(name: str, lora: bool = False):
    """With attention that computes all [T, T] pairs, which torch's counter knows how to count."""
    model = AutoModelForCausalLM.from_config(kit.CONFIGS[name](), attn_implementation="eager")
    return load._with_lora(model, ADAPTERS, checkpointing=True) if lora else model


def counted(model, backward: bool) -> int:
    """By torch, for one sequence, the head on every token."""
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=torch.arange(LENGTH)[None] % kit.VOCABULARY, use_cache=False).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "cohere"])
def test_the_formula_is_what_torch_counts(name, lora):
    model = eager(name, lora)
    products = Products.of(model)
    work = Work(LENGTH, len(products.windows) * LENGTH**2, LENGTH)
    # torch also counts the rotations' tables
    assert forward_flops(products, work) == pytest.approx(counted(model, False), rel=0.01)
    assert training_flops(products, work) == pytest.approx(counted(model, True), rel=0.02)
    assert products.all_trained != lora


def test_a_token_meets_the_experts_it_is_sent_to():
    config = MixtralConfig(**kit._SHAPE, num_local_experts=4, num_experts_per_tok=2)
    one = MixtralConfig(**kit._SHAPE, num_local_experts=2, num_experts_per_tok=2)
    with torch.device("meta"):
        four, two = (Products.of(AutoModelForCausalLM.from_config(each)) for each in (config, one))
    router = 2 * kit._SHAPE["hidden_size"]
    assert four.matrices - two.matrices == router * kit._SHAPE["num_hidden_layers"]


def test_a_model_without_attention_has_no_pairs():
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    with torch.device("meta"):
        assert Products.of(AutoModelForCausalLM.from_config(config)).pair == 0


def split_of(folder, *, truncate: int | None = None, ranks: int = 1) -> Split:
    store = kit.token_store(folder, kit.random_groups(7))
    used = np.array(store.valid, dtype=bool)
    used[::2, 1] = False
    rows = np.array([0, 1, 3, 4, 6])
    costs = GroupCosts.of(store, used, rows, truncate)
    plan = make_plan(costs, batch_size=2, max_tokens=60, ranks=ranks, seed=0, epochs=2)
    return Split(store, used, np.ones(len(store)), plan, truncate=truncate)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("truncate", [None, 14])
@pytest.mark.parametrize("windows", [(None,), (None, 5), (3, 3, None)])
def test_work_is_what_the_packs_hold(tmp_path, windows, truncate, ranks):
    split = split_of(tmp_path, truncate=truncate, ranks=ranks)
    by_row = work_by_row(split, windows)
    total = np.zeros(3, np.int64)
    for step in range(split.plan.steps):
        mine = np.zeros(3, np.int64)
        for rank, packs in enumerate(split.plan.step(step).packs):
            for place in [place for place, pack in enumerate(packs) if pack.groups]:
                batch = split.pack(step, place, rank)
                layout = PackLayout.of(batch, "sdpa")
                mask = may_attend(layout.group, layout.branch, layout.position)
                real = sum(segment.end - segment.start for segment in batch.segments)
                apart = layout.position[:, None] - layout.position[None, :]
                seen = [mask if window is None else mask & (apart < window) for window in windows]
                mine += [real, sum(int(one[:real, :real].sum()) for one in seen), len(batch.labels)]
        assert work_of_step(split.plan, by_row, step) == Work(*mine.tolist())
        assert mine[0] == split.plan.tokens_of_step(step)
        total += mine
    assert work_of_run(split.plan, by_row) == Work(*total.tolist())


def test_apart_is_every_response_with_its_own_prompt(tmp_path):
    split = split_of(tmp_path)
    shared, apart = (work_by_row(split, (None,), apart=way)[1] for way in (False, True))
    lengths = [int(split.store.prompt_tokens[1] + one) for one in split.store.branch_tokens[1]]
    assert apart.tolist() == [sum(lengths), sum(n * (n + 1) // 2 for n in lengths), sum(lengths)]
    assert shared[0] == sum(lengths) - (len(lengths) - 1) * split.store.prompt_tokens[1]


def test_a_steps_flops_are_the_formula_of_its_work(tmp_path):
    split, model = split_of(tmp_path), kit.tiny_model()
    products = Products.of(model)
    by_row, flops = work_by_row(split, products.windows), flops_of_step(model, split)
    assert [flops(step) for step in range(split.plan.steps)] == [
        training_flops(products, work_of_step(split.plan, by_row, step)) for step in range(split.plan.steps)
    ]
    assert recomputed_flops(products, Work(3, 9, 2)) == forward_flops(products, Work(3, 9, 0))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_hardware(name):
    found = Hardware.of(OmegaConf.load(config_folder() / "hardware" / f"{name}.yaml"))
    assert found.memory > 2**30 > found.overhead / 2 > 0
    assert found.rate("bf16-mixed", torch.float32) == found.rate("32-true", torch.bfloat16) == found.bf16_flops
    assert found.rate("32-true", torch.float32) == 2 * found.rate("64-true", torch.float64) == found.fp32_flops


@pytest.mark.parametrize("key", ["memory_gib", "overhead_gib", "bf16_flops", "fp32_flops"])
@pytest.mark.parametrize("value", [-1, 0, "much"])
def test_impossible_hardware_is_refused(key, value):
    cfg = OmegaConf.load(config_folder() / "hardware" / "h100.yaml")
    cfg[key] = value
    if (key, value) == ("overhead_gib", 0):
        assert Hardware.of(cfg).overhead == 0
        return
    with pytest.raises(FuserlError, match=f"hardware.{key}"):
        Hardware.of(cfg)


def test_a_gpu_is_known_by_its_name(monkeypatch):
    known = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA GeForce RTX 4090": 165.2e12}
    for name, rate in (known | {"NVIDIA T4": None}).items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert hardware.peak_flops(torch.device("cuda")) == rate
    assert hardware.peak_flops(torch.device("cpu")) is None

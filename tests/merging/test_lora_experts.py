"""A LoRA adapter is its base plus `scale · B A`, as peft merges it; what peft would merge otherwise is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merging_kit import merged, overrides, random_model, save, tensors
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from fuserl.errors import FuserlError

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    "rank-stabilised": dict(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    "patterns": dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.self_attn.v_proj": 32, "q_proj": 3},
    ),
    "a whole head": dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}  # fmt: skip


def adapter(model: Any, base: Path, folder: Path, **settings: Any) -> Any:
    """A random adapter, saved; returns what peft makes of it, merged."""
    torch.manual_seed(5)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data.add_(0.1 * torch.randn_like(weight))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


@pytest.fixture
def models(tmp_path) -> Path:
    save(random_model(0), tmp_path / "base")
    save(random_model(1), tmp_path / "a")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_merged_as_by_peft(models, case):
    whole = adapter(random_model(0), models / "base", models / "lora", **CASES[case])
    save(whole, models / "whole")
    mine, theirs = (
        tensors(merged(overrides(models, ["a", name]), models / f"out_{name}", "merge.select=1"))
        for name in ("lora", "whole")
    )
    base = tensors(models / "base")
    assert any(not torch.equal(mine[name], base[name]) for name in base)
    for name, weight in theirs.items():
        assert_close(mine[name], weight, rtol=1e-5, atol=1e-6)
    told = json.loads((models / "out_lora/manifest.json").read_text())["models"]["lora"]
    assert any(file.endswith("adapter_model.safetensors") for file in told["files"])


def test_matrices_that_are_stored_the_other_way_round_are_turned(tmp_path):
    def gpt2() -> Any:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))

    save(gpt2(), tmp_path / "base")
    whole = adapter(gpt2(), tmp_path / "base", tmp_path / "lora", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    there = tensors(merged(overrides(tmp_path, ["lora"]), tmp_path / "out", "merge=varm", "reload_gb=1"))
    expected = {name: weight for name, weight in whole.state_dict().items() if name in there}
    assert len(expected) == len(there)
    for name, weight in expected.items():
        assert_close(there[name], weight)


def test_an_adapter_of_another_base_than_the_merges_brings_its_own(models):
    save(random_model(7), models / "other")
    whole = adapter(random_model(7), models / "other", models / "lora", **CASES["plain"])
    there = tensors(merged(overrides(models, ["lora"]), models / "out", "merge=varm"))
    for name, weight in whole.state_dict().items():
        assert_close(there[name], weight, rtol=1e-5, atol=1e-6)


def test_small_updates_of_a_half_precision_base_are_not_rounded_away(tmp_path):
    save(random_model(0, dtype=torch.bfloat16), tmp_path / "base")
    model = random_model(0, dtype=torch.bfloat16)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data.fill_(1e-3)
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "lora")
    there = tensors(merged(overrides(tmp_path, ["lora"]), tmp_path / "out", "merge=varm", "merge.dtype=float32"))
    name = "model.layers.0.self_attn.q_proj.weight"
    gap = there[name] - tensors(tmp_path / "base")[name].float()
    assert_close(gap, torch.full_like(gap, 8 / 2 * 2 * 1e-6), rtol=0.05, atol=1e-7)


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


BAD = {
    "DoRA": (lambda f: settings(f, use_dora=True), "uses `use_dora`", "merge_and_unload"),
    "a bias of its own": (lambda f: settings(f, lora_bias=True), "uses `lora_bias`", "merge_and_unload"),
    "PiSSA": (lambda f: settings(f, init_lora_weights="pissa"), "begun by `pissa`", "merge_and_unload"),
    "IA3": (lambda f: settings(f, peft_type="IA3"), "is IA3, not LoRA", "merge_and_unload"),
    "pickled": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        r"has no `adapter_model\.safetensors`",
        "safe_serialization",
    ),
    "a base that is not here": (
        lambda f: settings(f, base_model_name_or_path="/nowhere/at/all"),
        "base `/nowhere/at/all` is not here",
        "base_model_name_or_path",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_other_adapters_are_refused(models, case):
    adapter(random_model(0), models / "base", models / "lora", **CASES["plain"])
    change, said, way_out = BAD[case]
    change(models / "lora")
    with pytest.raises(FuserlError, match=said) as found:
        merged(overrides(models, ["a", "lora"]), models / "out")
    assert way_out in found.value.hint
    assert not (models / "out").exists()


def test_an_adapter_that_does_not_fit_its_base_is_refused(models):
    adapter(random_model(0, hidden_size=32), models / "base", models / "lora", **CASES["plain"])
    with pytest.raises(FuserlError, match=r"makes \[.*32.*its base has \[.*16") as found:
        merged(overrides(models, ["a", "lora"]), models / "out")
    assert "another base" in found.value.hint
    shutil.rmtree(models / "lora")
    adapter(random_model(0, num_hidden_layers=3), models / "base", models / "lora", **CASES["plain"])
    with pytest.raises(FuserlError, match="belongs to nothing in its base"):
        merged(overrides(models, ["a", "lora"]), models / "out")


def test_an_adapter_is_no_base(models):
    adapter(random_model(0), models / "base", models / "lora", **CASES["plain"])
    with pytest.raises(FuserlError, match="the base is a LoRA adapter"):
        merged([f"base={models / 'lora'}", f"experts=[{models / 'a'}]"], models / "out", "merge=varm")
    assert isinstance(PeftModel.from_pretrained(random_model(0), models / "lora"), PeftModel)

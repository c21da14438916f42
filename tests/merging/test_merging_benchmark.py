"""The benchmark of merging makes what it says, and finds models that differ."""

from __future__ import annotations

import sys

import kit
import pytest
from merging_kit import rewrite
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(kit.ROOT))

from benchmarks import merging


def test_models_of_the_size_that_is_asked_for(tmp_path):
    base, expert = merging.make(tmp_path, 0.001, 1, "toy")
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert 0.8e6 < size < 1.2e6
    assert len(list(base.glob("*.safetensors"))) > 1
    config = AutoConfig.from_pretrained(expert)
    assert config.architectures == ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(expert)
    assert model.lm_head.weight.float().std().item() == pytest.approx(2**0.5 * 0.02, rel=0.05)


def test_models_that_differ_are_found(tmp_path):
    one, other = merging.make(tmp_path / "a", 0.001, 1, "toy")[1], merging.make(tmp_path / "b", 0.001, 1, "toy")[1]
    assert merging.require_equal(one, other) == 0
    rewrite(other, lambda tensors: tensors["lm_head.weight"][:3].mul_(1.5))
    with pytest.raises(AssertionError, match="elements differ"):
        merging.require_equal(one, other)
    rewrite(other, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(AssertionError, match="other tensors"):
        merging.require_equal(one, other)

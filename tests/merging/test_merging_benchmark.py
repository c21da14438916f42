"""The benchmark of merging makes what it says, and finds models that differ."""

from __future__ import annotations

import shutil
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
    models = merging.make(tmp_path / "a", 0.001, 1, "toy")
    one, other = models[1], merging.make(tmp_path / "b", 0.001, 1, "toy")[1]
    assert merging.require_equal(one, other) == 0
    rewrite(other, lambda tensors: tensors["lm_head.weight"][:3].mul_(1.5))
    for chosen_by_variance in ((), [models[0], one, other]):
        with pytest.raises(AssertionError, match="elements differ"):
            merging.require_equal(one, other, chosen_by_variance)
    rewrite(other, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(AssertionError, match="other tensors"):
        merging.require_equal(one, other)


def test_elements_of_one_variance_may_be_chosen_otherwise(tmp_path):
    """Of two elements whose experts differ alike, one side takes the first and one the second."""
    base, a, b = merging.make(tmp_path, 0.001, 2, "toy")

    def alike(tensors):
        tensors["lm_head.weight"].view(-1)[:2] = 0

    def apart(tensors):
        tensors["lm_head.weight"].view(-1)[:2] = 1

    for model, change in ((base, alike), (a, alike), (b, apart)):
        rewrite(model, change)
    for name, place in (("one", 0), ("other", 1)):
        shutil.copytree(base, tmp_path / name)
        rewrite(tmp_path / name, lambda tensors, place=place: tensors["lm_head.weight"].view(-1)[place].fill_(0.5))
    one, other = tmp_path / "one", tmp_path / "other"
    assert merging.require_equal(one, other, [base, a, b]) > 0
    with pytest.raises(AssertionError, match="2 of .* elements differ"):
        merging.require_equal(one, other)


@pytest.mark.parametrize("method", merging.METHODS)
def test_both_sides_do_the_same_job(tmp_path, method):
    pytest.importorskip("mergekit")
    models = merging.make(tmp_path, 0.0005, 2, "toy")
    merging.ours(method, models, tmp_path / "ours", 1)
    merging.theirs(method, models, tmp_path / "theirs", 1, "float32")
    chosen_by_variance = models if merging.METHODS[method].ties else ()
    assert merging.require_equal(tmp_path / "ours", tmp_path / "theirs", chosen_by_variance) < 0.01

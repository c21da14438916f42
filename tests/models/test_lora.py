"""LoRA: the base below the adapters is the reference, and an adapter merged is the adapter applied."""

from __future__ import annotations

import copy
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.models import load
from fuserl.models.generate import sample
from fuserl.models.reference import fill, frozen, weights_digest
from fuserl.models.reference_cache import ReferenceCache
from fuserl.models.scoring import check_model, score_batch, score_padded
from fuserl.tokens.collate import collate

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NAMES = ["llama", "gemma2", "phi3", "gpt_neox"]


def adapted(model, seed: int = 0, **options):
    """A LoRA around a copy of the model, as far from it as after much training."""
    wrapped = load._with_lora(copy.deepcopy(model), LORA | options, checkpointing=False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return wrapped


@pytest.fixture
def batch(tmp_path):
    store = kit.token_store(tmp_path)
    return collate(store, [0, 1, 2], np.array(store.valid))


@pytest.fixture
def base_folder(tmp_path) -> Path:
    kit.tiny_model("llama", torch.float32).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_fresh_adapter_changes_nothing(batch):
    model = kit.tiny_model()
    fresh = load._with_lora(copy.deepcopy(model), LORA, checkpointing=False)
    assert torch.equal(score_batch(fresh, batch), score_batch(model, batch)), "loss at step 0 is exactly ln 2"


@pytest.mark.parametrize("name", NAMES)
def test_adapters_off_is_the_base_and_merged_is_on(name, batch):
    model = kit.tiny_model(name)
    policy = adapted(model)
    with kit.KeepDouble(), torch.no_grad():
        base, on = score_batch(model, batch), score_batch(policy, batch)
        with frozen(policy):
            assert torch.equal(score_batch(policy, batch), base)
        assert torch.equal(score_batch(policy, batch), on), "adapters are back on"
        assert (on - base).abs().min() > 1e-3
        merged = copy.deepcopy(policy).merge_and_unload()
        assert_close(score_batch(merged, batch), on, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_padded_with_adapters(name, batch):
    policy = adapted(kit.tiny_model(name))
    found = []
    with kit.KeepDouble():
        for score in (score_batch, score_padded):
            policy.zero_grad()
            logps = score(policy, batch)
            (logps * torch.linspace(0.5, 1.5, len(logps), dtype=logps.dtype)).sum().backward()
            found.append((logps.detach(), {name: weight.grad for name, weight in policy.named_parameters()}))
    (packed, fast), (padded, slow) = found
    assert_close(packed, padded, rtol=0, atol=1e-10)
    for weight in fast:
        assert ("lora_" in weight) == (fast[weight] is not None), f"{weight}: adapters alone are trained"
        if fast[weight] is not None:
            assert_close(fast[weight], slow[weight], rtol=1e-9, atol=1e-10)


def test_sampling_uses_the_adapters(batch):
    model = kit.tiny_model()
    policy = adapted(model)
    merged = copy.deepcopy(policy).merge_and_unload()
    arguments = {"n": 1, "max_new_tokens": 10, "temperature": 0, "stop_ids": set(), "seed": 0}
    prompts = [[5, 6, 7], [8, 9]]
    assert (
        sample(policy, prompts, **arguments)
        == sample(merged, prompts, **arguments)
        != sample(model, prompts, **arguments)
    )
    with frozen(policy):
        assert sample(policy, prompts, **arguments) == sample(model, prompts, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_the_digest_is_the_bases(name):
    model = kit.tiny_model(name)
    assert weights_digest(adapted(model)) == weights_digest(model) == weights_digest(adapted(model, seed=1))
    assert weights_digest(adapted(model).merge_and_unload()) != weights_digest(model)


def test_the_reference_of_a_lora_policy_is_its_base(tmp_path):
    model, store = kit.tiny_model(), kit.token_store(tmp_path)
    used = np.array(store.valid)

    def filled(candidate, folder: str) -> np.ndarray:
        cache = ReferenceCache(tmp_path / folder, weights=weights_digest(candidate), dtype="float64", backend="sdpa")
        values = fill(candidate, store, used, cache, max_tokens=64, backend="sdpa")
        filled.hits = cache.hits
        return values

    wanted = filled(model, "shared")
    np.testing.assert_array_equal(filled(adapted(model), "alone"), wanted)
    np.testing.assert_array_equal(filled(adapted(model, seed=1), "shared"), wanted)
    assert filled.hits == used.sum(), "full training and LoRA runs share entries"


# folders


def test_a_policy_with_lora_from_a_folder(base_folder, batch):
    policy = load.load_policy(str(base_folder), lora=LORA)
    assert policy.training
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    check_model(policy, "sdpa")
    assert_close(score_batch(policy, batch), score_batch(load.load_policy(str(base_folder)), batch), rtol=0, atol=0)


def test_checkpointing_recomputes_the_same_gradients(base_folder, batch):
    gradients = []
    for checkpointing in ("none", "full", "selective"):
        policy = load.load_policy(str(base_folder), dtype="float64", lora=LORA, checkpointing=checkpointing)
        assert any(getattr(module, "gradient_checkpointing", False) for module in policy.modules()) == (
            checkpointing != "none"
        )
        generator = torch.Generator().manual_seed(0)
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        score_batch(policy, batch).sum().backward()
        gradients.append([weight.grad for weight in policy.parameters() if weight.requires_grad])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    for plain, *recomputed in zip(*gradients, strict=True):
        assert all(torch.equal(plain, other) for other in recomputed)


def test_a_second_adapter_starts_from_the_first_one_merged(base_folder, batch, tmp_path):
    """SFT with LoRA, then preferences with LoRA: the reference is the SFT policy, not the model below it."""
    first = load.load_policy(str(base_folder), lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, weight in first.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    first.save_pretrained(tmp_path / "sft")
    with torch.no_grad():
        wanted = score_batch(first, batch)
        second = load.load_policy(str(tmp_path / "sft"), lora=LORA)
        assert_close(score_batch(second, batch), wanted, rtol=0, atol=1e-4)
        with frozen(second):
            assert_close(score_batch(second, batch), wanted, rtol=0, atol=1e-4)
        merged = load.load_policy(str(tmp_path / "sft"))
    assert not hasattr(merged, "disable_adapter")
    assert weights_digest(second) == weights_digest(merged) != weights_digest(first)
    assert sum("lora_A" in name for name, _ in second.named_parameters()) == sum(
        "lora_A" in name for name, _ in first.named_parameters()
    )


@pytest.mark.parametrize(
    "lora", [{"r": 4, "rank": 3}, {"r": 4, "target_modules": ["no_such_layer"]}, {"r": -1}], ids=str
)
def test_impossible_settings_are_one_clear_error(base_folder, lora):
    with pytest.raises(FuserlError, match="LoRA cannot be set up") as caught:
        load.load_policy(str(base_folder), lora=lora)
    assert "target.lora" in str(caught.value)


def test_a_training_policy_without_asked_for_dropout_repeats_itself(base_folder, batch):
    policy = load.load_policy(str(base_folder), lora=LORA)
    assert policy.training
    assert torch.equal(score_batch(policy, batch), score_batch(policy, batch))


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    pytest.param(
        {"target_modules": ["q_proj", "lm_head"]},
    ),
], ids=str)  # fmt: skip
def test_adapters_around_embeddings_and_head_count_or_are_refused(options, batch):
    try:
        policy = adapted(kit.tiny_model(), **options)
    except FuserlError:
        return
    assert_close(score_batch(policy, batch), score_padded(policy, batch), rtol=0, atol=1e-3)


@pytest.mark.parametrize("pickled", [
    "base",
    "base below an adapter",
    "adapter",
])  # fmt: skip
def test_pickled_weights_are_refused(pickled, base_folder, tmp_path):
    target, victim = base_folder, base_folder / "model.safetensors"
    if pickled != "base":
        target = tmp_path / "adapter"
        load.load_policy(str(base_folder), lora=LORA).save_pretrained(target)
        victim = target / "adapter_model.safetensors" if pickled == "adapter" else victim
    torch.save(
        load_file(victim),
        victim.with_name(victim.stem.replace("model", "pytorch_model", pickled != "adapter") + ".bin"),
    )
    victim.unlink()
    with pytest.raises(FuserlError, match="safetensors"):
        load.load_policy(str(target))

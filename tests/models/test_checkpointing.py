"""Recomputed activations give the same gradients, and keep as much as they say."""

from __future__ import annotations

import kit
import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fuserl.errors import FuserlError
from fuserl.models.checkpointing import WAYS, checkpoint_activations
from fuserl.models.generate import sample
from fuserl.models.scoring import score_batch, score_padded
from fuserl.tokens.collate import collate


@pytest.fixture
def batch(tmp_path):
    store = kit.token_store(tmp_path)
    return collate(store, [0, 1, 2], np.array(store.valid))


def trained(name: str, way: str):
    model = kit.tiny_model(name).train()
    checkpoint_activations(model, way)
    return model


def gradients(model, batch, score) -> list[torch.Tensor]:
    logps = score(model, batch)
    (logps * torch.linspace(-1, 1, len(logps), dtype=logps.dtype)).sum().backward()
    return [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("score", [score_batch, score_padded], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("way", ["full", "selective"])
def test_gradients_are_the_same_to_the_bit(way, name, score, batch):
    plain = gradients(trained(name, "none"), batch, score)
    recomputed = gradients(trained(name, way), batch, score)
    assert all(gradient.abs().sum() > 0 for gradient in plain)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, plain, strict=True))


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(
            part in str(function) for part in ("aten.mm", "aten.addmm", "aten.bmm", "flash_attention_for_cpu.")
        )
        return function(*args, **(kwargs or {}))


class Alive(TorchDispatchMode):
    """Knows the memory of all that was computed within it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple) else (out,):
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                self.seen[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self) -> int:
        """Of what is still needed."""
        return sum(size for storage, size in self.seen.values() if not storage.expired())


def forward_products(model, batch) -> tuple[int, int]:
    """(in forward, in forward and backward)."""
    with Products() as seen:
        loss = score_batch(model, batch).sum()
        forward = seen.count
        loss.backward()
    return forward, seen.count


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_full_repeats_matrix_products_and_selective_does_not(name, batch):
    counts = {way: forward_products(trained(name, way), batch) for way in WAYS}
    assert counts["none"][0] == counts["full"][0] == counts["selective"][0]
    assert counts["selective"][1] == counts["none"][1]
    assert counts["full"][1] > counts["none"][1]


def test_full_keeps_less_than_selective_and_selective_less_than_none(tmp_path):
    store = kit.token_store(tmp_path, longest=100)
    batch = collate(store, [0, 1, 2], np.array(store.valid))
    kept = {}
    for way in WAYS:
        model = trained("llama", way)
        with Alive() as alive:
            loss = score_batch(model, batch).sum()
            kept[way] = alive.bytes()
        del loss
    assert kept["full"] < 0.7 * kept["selective"]
    assert kept["selective"] < 0.8 * kept["none"]


def test_sampling_is_the_same(batch):
    arguments = {"n": 1, "max_new_tokens": 6, "temperature": 0, "stop_ids": set(), "seed": 0}
    answers = [sample(trained("llama", way), [[5, 6, 7]], **arguments) for way in WAYS]
    assert answers == [answers[0]] * 3


@pytest.mark.parametrize("way", ["true", "some", ""])
def test_another_way_is_refused(way):
    with pytest.raises(FuserlError, match="no activation checkpointing") as caught:
        checkpoint_activations(kit.tiny_model(), way)
    assert "none, full, selective" in str(caught.value)

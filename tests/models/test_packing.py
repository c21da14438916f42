"""Packs with shared prompts against separate padded forwards, on real architectures."""

from __future__ import annotations

from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fuserl.models import layout, pieces, sdpa
from fuserl.models.scoring import check_model, per_token, score_batch, score_padded, summed, table
from fuserl.tokens.collate import collate


def batch_of(tmp_path: Path, **kwargs):
    store = kit.token_store(tmp_path, kit.random_groups(3, 2, 2), **kwargs)
    return collate(store, [0, 1, 2], np.array(store.valid))


def gradients(model, logps):
    weights = torch.linspace(0.5, 1.5, len(logps), dtype=logps.dtype)
    model.zero_grad()
    (logps * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("dense", [0, 384], ids=["a call a branch", "a call for short groups"])
@pytest.mark.parametrize("name", list(kit.CONFIGS))
def test_packed_equals_separate_padded_forwards(name, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "DENSE", dense)
    model, batch = kit.tiny_model(name), batch_of(tmp_path)
    with kit.KeepDouble():
        packed, padded = score_batch(model, batch, rows=5), score_padded(model, batch)
        assert len(packed) == 12
        assert_close(packed, padded, rtol=0, atol=1e-10)
        fast, slow = gradients(model, packed), gradients(model, padded)
    assert fast.keys() == slow.keys()
    for weight in fast:
        assert_close(fast[weight], slow[weight], rtol=1e-9, atol=1e-10, msg=lambda m, w=weight: f"{w}: {m}")


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_a_neighbour_cannot_change_anything(name, tmp_path):
    model, batch = kit.tiny_model(name), batch_of(tmp_path)
    victim = (batch.group == 1) & (batch.branch == 2)
    assert victim.any()
    with torch.no_grad():
        before = per_token(model, batch, backend="sdpa", rows=4096)
        changed = batch._replace(input_ids=torch.where(victim, (batch.input_ids + 5) % kit.VOCABULARY, batch.input_ids))
        after = per_token(model, changed, backend="sdpa", rows=4096)
    own = batch.owner == batch.owner[(batch.predict[:, None] == victim.nonzero()[:1]).any(1)][0]
    assert torch.equal(before[~own], after[~own])
    assert not torch.equal(before[own], after[own])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dense", [0, 384])
def test_kernel_equals_the_dense_mask(window, softcap, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "DENSE", dense)
    batch = batch_of(tmp_path)
    pack = layout.PackLayout.from_columns(batch.group, batch.branch, batch.position_ids, "sdpa")
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, len(batch.group), 8, dtype=torch.float64, generator=generator).requires_grad_()
        for heads in (4, 2, 2)
    ]
    upstream = torch.randn(1, 4, len(batch.group), 8, dtype=torch.float64, generator=generator)
    got = sdpa.attend_pack(*states, pack, 0.3, window, softcap)
    wanted = sdpa.dense_oracle(*states, pack, 0.3, window, softcap)
    assert_close(got, wanted, rtol=0, atol=1e-12)
    grads, wanted_grads = (torch.autograd.grad((out * upstream).sum(), states) for out in (got, wanted))
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert_close(grad, wanted_grad, rtol=0, atol=1e-12)


def test_identical_responses_are_computed_once(tmp_path):
    store = kit.token_store(tmp_path, kit.random_groups(1, 1, 3))
    batch = collate(store, [0], np.array(store.valid))
    assert batch.row.tolist() == [[0, 1, 2]]
    store.duplicate_of = np.array([[0, 1, 0]])
    shared = collate(store, [0], np.array(store.valid))
    assert shared.row.tolist() == [[0, 1, 0]]
    assert len(shared.input_ids) == len(batch.input_ids) - store.branch_tokens[0, 2]
    logps = score_batch(kit.tiny_model(), shared)
    assert len(logps) == 2
    assert table(shared, logps).policy_logps[0, 2] == logps[0]


def test_the_logits_never_exist_as_a_whole(tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == kit.VOCABULARY:
                self.rows = max(self.rows, out.shape[0])
            return out

    model, batch = kit.tiny_model(), batch_of(tmp_path, longest=40)
    assert len(batch.labels) > 100
    with Largest() as seen:
        score_batch(model, batch, rows=16).sum().backward()
    assert seen.rows <= kit.VOCABULARY  # the weight's gradient is [V, D]; logits have 16 rows at most
    assert_close(summed(per_token(model, batch, backend="sdpa", rows=16), batch), score_batch(model, batch, rows=4096))


def test_the_start_up_check_refuses_a_model_that_cannot_be_packed(monkeypatch):
    from fuserl.errors import FuserlError
    from fuserl.models import attention

    model = kit.tiny_model()
    check_model(model, "sdpa")
    monkeypatch.setitem(attention.KERNELS, "sdpa", lambda q, k, v, pack, s, w, c: sdpa.attend(q, k, v, None, s, c))
    with pytest.raises(FuserlError, match="cannot be packed"):
        check_model(model, "sdpa")

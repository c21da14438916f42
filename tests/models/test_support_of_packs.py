"""The policy at the support of whole packs: packed against padded, and what follows for losses of tokens."""

from __future__ import annotations

from functools import partial

import kit
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fuserl.models.scoring import Packed, Padded, score_padded
from fuserl.objectives import distillation
from fuserl.objectives.distillation import Distillation, combined
from fuserl.tokens.collate import GroupBatch, Support, collate
from fuserl.training.token_module import sums_of

PACKED = Packed("sdpa", rows=5)
DIVERGENCES = {
    "cross_entropy": distillation.cross_entropy,
    "forward_kl": distillation.forward_kl,
    "reverse_kl": partial(distillation.reverse_kl, floor=1e-6),
    "jensen_shannon": distillation.jensen_shannon,
}


def packed(tmp_path, k: int = 4, used: float = 1.0) -> GroupBatch:
    store = kit.token_store(tmp_path, kit.random_groups(3, 2, 2))
    rng = np.random.default_rng(0)

    def support(row: int, column: int) -> Support:
        num = int(store.num_tokens[row, column])
        ids = np.argsort(rng.random((num, kit.VOCABULARY)), axis=1)[:, :k]
        ids[rng.random(ids.shape) < 0.2] = -1
        logps = np.log(rng.dirichlet(np.ones(k + 1), num))
        return Support(ids, logps[:, :k], logps[:, k])

    return collate(store, [0, 1, 2], np.asarray(store.valid) & (rng.random(store.valid.shape) < used), support=support)


def settings(
    name: str = "forward_kl", share: float = 0.3, tail: str = "bucket", temperature: float = 1.0
) -> Distillation:
    return Distillation("some where", DIVERGENCES[name], partial(distillation.fixed, value=share), temperature, 0, tail)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("used", [1.0, 0.5, 0.0])
def test_packed_and_padded_read_the_same(tmp_path, name, temperature, used):
    batch, models = packed(tmp_path, used=used), [kit.tiny_model(name) for _ in range(2)]
    chosen = settings("jensen_shannon", temperature=temperature)
    with kit.KeepDouble():
        sums = [sums_of(model, way, batch, chosen) for model, way in zip(models, (PACKED, Padded()), strict=True)]
        for ours, theirs in zip(*sums, strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-10)
        for mine in sums:
            combined(mine, 0.3).sum.sum().backward()
        assert_close(sums[0].clm, -score_padded(models[0], batch), rtol=0, atol=1e-10)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        wanted = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        assert_close(torch.zeros_like(ours) if ours.grad is None else ours.grad, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_policy_learns_nothing_from_itself(tmp_path, name, temperature):
    """P is the policy's own top k with the mass of the others: no divergence, and no slope of it."""
    batch, model = packed(tmp_path), kit.tiny_model("llama")
    with kit.KeepDouble():
        with torch.no_grad():
            everything = torch.arange(kit.VOCABULARY).expand(len(batch.labels), -1)
            logps = PACKED.support(model, batch._replace(support_ids=everything), 1.0).logits.log_softmax(dim=1)
        top = logps.topk(4, dim=1)
        tail = logps.scatter(1, top.indices, -torch.inf).logsumexp(dim=1)
        own = batch._replace(support_ids=top.indices, support_logps=top.values, support_tail=tail)
        sums = sums_of(model, PACKED, own, settings(name, temperature=temperature))
        sums.divergence.sum().backward()
    assert float(sums.divergence.detach().abs().max()) < 1e-10
    assert max(float(weight.grad.abs().max()) for weight in model.parameters()) < 1e-10
    assert sums.num_given.tolist() == sums.num_tokens.tolist()


@pytest.mark.parametrize("way", [PACKED, Padded()], ids=["packed", "padded"])
def test_half_precision_stays_near(tmp_path, way):
    batch = packed(tmp_path)
    exact, near = (
        sums_of(kit.tiny_model("llama", dtype), way, batch, settings(temperature=2.0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert near.divergence.dtype == torch.float32
    assert_close(near.divergence, exact.divergence, rtol=0.1, atol=0.1)

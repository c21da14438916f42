"""The head's gradients in forward against autograd through full logits: every kind of head, loss and slicing."""

from __future__ import annotations

from functools import partial

import kit
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fuserl.models.head import Head, LossAt, head_loss, token_logps
from fuserl.models.scoring import Packed, score_batch, table
from fuserl.models.spans import few, spans_of
from fuserl.objectives.pairing import best_and_worst_of_each_source
from fuserl.objectives.preference import fusepo_dpo, fusepo_simpo
from fuserl.objectives.rloo import fusepo_rloo
from fuserl.objectives.supervised import fusesft
from fuserl.objectives.weights import softmax, uniform
from fuserl.tokens.collate import Segment, collate
from fuserl.training.prepare import with_copies

D, V = 6, 11
HEADS = {
    "plain": dict(),
    "biased": dict(bias=True),
    "soft-capped": dict(softcap=1.5),
    "scaled": dict(scale=0.3),
    "all of it": dict(bias=True, softcap=1.5, scale=0.3),
}
SIZES = ((3, 2), (4,), (1, 5, 2))  # trained tokens of every response of every prompt


def parts(bias: bool = False, softcap: float | None = None, scale: float = 1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    lengths = [length for prompt in SIZES for length in prompt]
    labels = torch.randint(V, (sum(lengths),), generator=generator)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    hidden, weight, offset = draw(len(labels), D), draw(V, D), draw(V) if bias else None
    return hidden, Head(weight, offset, softcap, scale), labels, owner


def spans(rows: int, units: int = 1):
    """Responses number 0, units, 2 units, ... of a prompt are one unit, and so on."""
    segments = []
    for prompt in SIZES:
        branches = (Segment(1, 1 + length, (0, 1), length, number % units) for number, length in enumerate(prompt))
        segments += [Segment(0, 1, (0, 1)), *branches]
    return spans_of(segments, len(SIZES), rows)


def curved(span, logps, units: int = 1):
    """A loss that mixes the responses of a unit, so that slopes depend on all of them, and on nothing else."""
    with torch.enable_grad():
        leaf = logps.detach().requires_grad_()
        total, at = leaf.new_zeros(()), 0
        for prompt in SIZES[slice(*span.prompts)]:
            mine, at = leaf[at : at + len(prompt)], at + len(prompt)
            total = total + torch.tanh(mine).sum()
            for unit in range(units):
                total = total + (mine[unit::units].sum() ** 2) * 0.01
        return LossAt(total.detach(), torch.autograd.grad(total, leaf)[0])


def straight(span, logps):
    """Linear in log-probs, another slope for each."""
    slopes = -torch.linspace(0.1, 1.0, sum(map(len, SIZES)), dtype=logps.dtype)[slice(*span.responses)]
    return LossAt((slopes * logps).sum(), slopes)


def oracle(loss, hidden, head, labels, owner):
    summed = torch.zeros(int(owner.max()) + 1, dtype=hidden.dtype).index_add(
        0, owner, token_logps(hidden, head, labels, rows=99)
    )
    whole = spans(99)[0]
    return (loss(whole, summed).slopes * summed).sum(), loss(whole, summed.detach()).sum, summed.detach()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [1, 3, 6, 99])
@pytest.mark.parametrize(
    ("loss", "linear", "units"),
    [(curved, False, 1), (partial(curved, units=2), False, 2), (straight, False, 3), (straight, True, 1)],
    ids=["curved", "two units", "straight", "linear"],
)
def test_gradients_equal_autograd(kind, rows, loss, linear, units):
    mine, theirs = parts(**HEADS[kind]), parts(**HEADS[kind])
    got, logps = head_loss(*mine, spans(rows, units), loss, rows=rows, linear=linear)
    (got * 3).backward()
    surrogate, value, wanted_logps = oracle(loss, *theirs)
    (surrogate * 3).backward()
    assert_close(got.detach(), value, rtol=0, atol=1e-12)
    assert_close(logps, wanted_logps, rtol=0, atol=1e-12)
    assert_close(mine[0].grad, theirs[0].grad, rtol=0, atol=1e-12)
    for ours, reference in zip(mine[1][:2], theirs[1][:2], strict=True):
        if ours is not None:
            assert_close(ours.grad, reference.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_part_gets_no_gradient(frozen):
    hidden, head, labels, owner = parts()
    (hidden if frozen == "hidden" else head.weight).requires_grad_(False)
    head_loss(hidden, head, labels, owner, spans(3), curved, rows=3, linear=False)[0].backward()
    theirs = parts()
    oracle(curved, *theirs)[0].backward()
    for ours, reference in ((hidden, theirs[0]), (head.weight, theirs[1].weight)):
        if ours.requires_grad:
            assert_close(ours.grad, reference.grad, rtol=0, atol=1e-12)
        else:
            assert ours.grad is None


def test_bf16_stays_near_the_exact_gradient():
    """Weights, states and slices in bf16; log-probs and accumulated gradients in fp32."""
    rounded = [part.detach().bfloat16().float() for part in (parts()[0], parts()[1].weight)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        hidden, head, labels, owner = parts(dtype=dtype)
        hidden.data, head.weight.data = (part.to(dtype) for part in rounded)
        _, logps = outcome = head_loss(hidden, head, labels, owner, spans(3), curved, rows=3, linear=False)
        outcome[0].backward()
        assert logps.dtype == torch.float32
        assert head.weight.grad.dtype == dtype
        found[dtype] = (logps, hidden.grad.float(), head.weight.grad.float())
    for exact, near in zip(*found.values(), strict=True):
        assert_close(near, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_autocast_keeps_master_weights_in_fp32():
    hidden, head, labels, owner = parts(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = head_loss(hidden, head, labels, owner, spans(99), curved, rows=99, linear=False)
    loss.backward()
    theirs = parts(dtype=torch.float32)
    oracle(curved, *theirs)[0].backward()
    assert head.weight.grad.dtype == torch.float32
    assert_close(head.weight.grad, theirs[1].weight.grad, rtol=0, atol=0.05 * float(theirs[1].weight.grad.abs().max()))


def test_backward_runs_once():
    loss, _ = head_loss(*parts(), spans(99), curved, rows=99, linear=False)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot run twice"):
        loss.backward()


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 8, 17, 99])
def test_spans_cover_every_prompt_once_and_cut_none(rows):
    found = spans(rows)
    for axis in range(3):
        ends = [span[axis] for span in found]
        assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert [end for _, end in found[-1][:3]] == [3, 6, 17]
    for span in found:
        assert span.rows[1] - span.rows[0] <= few(rows) or span.prompts[1] - span.prompts[0] == 1


@pytest.mark.parametrize("rows", [1, 8, 12, 20, 99])
@pytest.mark.parametrize("units", [1, 2, 3])
def test_pieces_hold_whole_units_and_every_row_once(rows, units):
    owner = [(p, r % units) for p, prompt in enumerate(SIZES) for r, length in enumerate(prompt) for _ in range(length)]
    pieces = [piece for span in spans(rows, units) for piece in span.pieces]
    covered = [[row for part in piece for row in range(part.start, part.stop)] for piece in pieces]
    assert sorted(row for piece in covered for row in piece) == list(range(len(owner)))
    for piece in covered:
        held = {owner[row] for row in piece}
        assert all(row in piece for row in range(len(owner)) if owner[row] in held)
        assert len(piece) <= few(rows) or len(held) == 1, "only a unit alone is larger than a slice"


def test_a_unit_that_fits_goes_through_the_head_once(monkeypatch):
    """Slices are a fourth of what fits; a unit may take all of it, and only a larger one is computed twice."""
    products = []

    def counted(states, weight, **kwargs):
        products.append(len(states))
        return mm(states, weight, **kwargs)

    mm = torch.mm
    monkeypatch.setattr(torch, "mm", counted)
    hidden, head, labels, owner = parts(dtype=torch.float32)
    total = len(labels)
    for rows, units, passes in ((99, 1, 1), (8, 1, 1), (7, 1, 2), (7, 2, 1), (4, 2, 2)):
        products.clear()
        loss = partial(curved, units=units)
        head_loss(hidden, head, labels, owner, spans(rows, units), loss, rows=rows, linear=False)
        assert max(products) <= rows
        assert (sum(products) > total) == (passes > 1), (rows, units, products)


@pytest.mark.parametrize("rows", [3, 30, 4096])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize(
    "loss",
    [
        partial(fusesft, weights=partial(softmax, tau=0.3), pool="top", size=3, normalize="none", count="token"),
        partial(fusepo_dpo, pairs=best_and_worst_of_each_source, weights=partial(softmax, tau=0.3), beta=0.3, nll=0.2),
        partial(fusepo_simpo, pairs=best_and_worst_of_each_source, weights=uniform, beta=2.0, gamma_beta_ratio=0.3),
        partial(fusepo_rloo, weights=uniform, baseline="source", kl=0.1, clip=0.2, masked="renormalise", count="prompt"),
    ],
    ids=["fusesft", "fusepo_dpo", "fusepo_simpo", "fusepo_rloo"],
)  # fmt: skip
def test_whole_model_equals_autograd(tmp_path, name, rows, loss):
    """The step that trains, against ordinary autograd from the summed log-probs, padding and copies included."""
    store = kit.token_store(tmp_path, kit.random_groups(4, 2, 3))
    store.duplicate_of = np.array(store.duplicate_of)
    store.duplicate_of[1, 2] = 0
    used = np.array(store.valid)
    used[2] = False
    units = with_copies(np.array(store.source), store) if loss.func is not fusesft else None
    batch = collate(store, [0, 1, 2, 3], used, multiple=64, units=units)
    assert len(batch.input_ids) % 64 == 0
    ours, theirs = kit.tiny_model(name), kit.tiny_model(name)
    with kit.KeepDouble():
        found = Packed("sdpa", rows).loss(ours, batch, loss)
        found.sum.backward()
        logps = score_batch(theirs, collate(store, [0, 1, 2, 3], used))
        total = loss(table(batch, logps)).sum.sum()
        total.backward()
    assert_close(found.sum.detach(), total.detach(), rtol=0, atol=1e-10)
    assert_close(found.logps, logps.detach(), rtol=0, atol=1e-10)
    for (label, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=1e-10, msg=lambda m, n=label: f"{n}: {m}")


def test_copies_join_their_units(tmp_path):
    """Equal responses share a log-prob, so what depends on one depends on the other."""
    store = kit.token_store(tmp_path, kit.random_groups(2, 2, 3))
    store.duplicate_of = np.array(store.duplicate_of)
    store.duplicate_of[0, 5] = 1
    units = np.array([[0, 1, 1, 3, 4, 4], [0, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(with_copies(units, store), [[0, 1, 1, 3, 1, 1], [0, 1, 2, 3, 4, 5]])

"""Logits at the support and log-sums by slices, against autograd through full logits; and what is never in memory."""

from __future__ import annotations

import kit
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fuserl.errors import FuserlError
from fuserl.models.head import Head, Workspace
from fuserl.models.scoring import trained_states
from fuserl.models.support import at_support
from fuserl.objectives.distillation import Fused, Policy, combined, cross_entropy, jensen_shannon, summed
from fuserl.tokens.collate import collate

T, D, V = 7, 6, 11
HEADS = {
    "plain": dict(),
    "biased": dict(bias=True),
    "soft-capped": dict(softcap=1.5),
    "all of it": dict(bias=True, softcap=1.5, scale=0.3),
}
LABELS = (torch.arange(T) * 3) % V


def head_and_states(bias: bool = False, softcap: float | None = None, scale: float = 1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(T, D), Head(draw(V, D), draw(V) if bias else None, softcap, scale)


def some_ids(k: int, padding: int = 0, num: int = T, vocabulary: int = V) -> torch.Tensor:
    """Other tokens in each row, the gold one sometimes among them; `padding` places without a token, at random."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(num, vocabulary, generator=generator).argsort(dim=1)[:, :k]
    return ids.scatter(1, torch.rand(num, k, generator=generator).argsort(dim=1)[:, :padding], -1)


def dense(hidden, head, labels, ids, temperature: float = 1.0) -> Policy:
    """The oracle: [T, V], nothing clever."""
    z = head.logits(hidden) * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    held = torch.zeros(len(z), z.shape[1] + 1, dtype=torch.bool)
    held = held.scatter(1, torch.where(ids >= 0, ids, z.shape[1]), True)[:, :-1]
    rest, tempered = (torch.where(held, -torch.inf, z / tau).logsumexp(dim=1) for tau in (1.0, temperature))
    logits = torch.where(ids >= 0, z.gather(1, ids.clamp(min=0)), 0.0)
    return Policy(logits, z.gather(1, labels[:, None])[:, 0], rest, tempered, temperature)


def mixed(policy: Policy) -> torch.Tensor:
    """A number that depends on all of it, with another slope for each entry; what is -inf has none."""
    total = policy.logits.new_zeros(())
    for part in policy[:4]:
        slopes = torch.linspace(-1, 2, part.numel(), dtype=part.dtype).view(part.shape)
        total = total + (slopes * torch.where(part > -torch.inf, part, 0.0)).sin().sum()
    return total


def agree(got: Policy, wanted: Policy, tolerance: float = 1e-10) -> None:
    for mine, theirs in zip(got[:4], wanted[:4], strict=True):
        assert_close(mine, theirs, rtol=0, atol=tolerance)
    assert got.temperature == wanted.temperature


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [1, 3, 99])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_autograd_through_full_logits(kind: str, rows: int, temperature: float) -> None:
    room = Workspace()  # as between packs: what an earlier call left there does not matter
    for k, padding in ((4, 0), (5, 2), (3, 3), (V, 0), (V, 4), (0, 0)):
        ids = some_ids(k, padding)
        mine, theirs = head_and_states(**HEADS[kind]), head_and_states(**HEADS[kind])
        got = at_support(*mine, LABELS, ids, rows=rows, temperature=temperature, room=room)
        wanted = dense(*theirs, LABELS, ids, temperature)
        agree(got, wanted)
        mixed(got).backward()
        mixed(wanted).backward()
        for ours, reference in zip((mine[0], *mine[1][:2]), (theirs[0], *theirs[1][:2]), strict=True):
            if ours is not None:
                assert_close(ours.grad, reference.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tau", [1.0, 0.5, 4.0])
def test_the_pieces_make_up_the_sum_over_the_vocabulary(tau: float) -> None:
    hidden, head = head_and_states(bias=True)
    ids = some_ids(5, 2)
    policy = at_support(hidden, head, LABELS, ids, rows=3, temperature=tau)
    z = head.logits(hidden)
    for bucket, temperature in ((policy.rest, 1.0), (policy.tempered, tau)):
        kept = torch.where(ids >= 0, policy.logits / temperature, -torch.inf)
        whole = torch.cat([kept, bucket[:, None]], dim=1).logsumexp(dim=1)
        assert_close(whole, (z / temperature).logsumexp(dim=1), rtol=0, atol=1e-12)


def test_a_bucket_far_below_fp32_keeps_its_precision() -> None:
    """As a difference of two sums it would be 0, or noise."""
    head = Head(torch.tensor([[200.0], [0.3], [-0.4]]), None)
    policy = at_support(torch.ones(1, 1), head, torch.tensor([0]), torch.tensor([[0]]), rows=1)
    assert_close(policy.rest, torch.tensor([0.3, -0.4]).logsumexp(dim=0)[None], rtol=1e-6, atol=0)


class Largest(TorchDispatchMode):
    """Sizes of all tensors that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, torch.Tensor):
                self.sizes.add(part.untyped_storage().nbytes() // part.element_size())
        return made


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_full_logits_never_exist(temperature: float, softcap: float | None, dtype: torch.dtype) -> None:
    num, vocabulary, rows, width = 96, 80, 4, 2
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, width, generator=generator).to(dtype).requires_grad_() for size in (num, vocabulary)
    )
    labels, ids = torch.arange(num) % vocabulary, some_ids(5, 1, num, vocabulary)
    fused = Fused(torch.full((num, 5), -2.0), ids >= 0, torch.full((num,), -1.5))

    def step(policy: Policy) -> None:
        owner, mask = labels % 3, torch.ones(num, dtype=torch.bool)
        sums = summed(fused, policy, owner, mask, num_sequences=3, divergence=jensen_shannon, tail="bucket")
        combined(sums, 0.9).sum.sum().backward()

    with Largest() as seen:
        step(at_support(hidden, Head(weight, None, softcap), labels, ids, rows=rows, temperature=temperature))
    stride = -(-(vocabulary + 1) // 16) * 16
    assert max(seen.sizes) <= max(rows * stride, num * (5 + 1)) < num * vocabulary / 10
    with Largest() as seen:
        step(dense(hidden, Head(weight, None, softcap), labels, ids, temperature))
    assert max(seen.sizes) >= num * vocabulary


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_whole_model_learns_what_the_papers_formula_teaches(tmp_path, name: str, temperature: float) -> None:
    """λ CLM + (1 - λ) CE of dense P and padded full logits; tied, capped and scaled heads as real models have them."""
    store = kit.token_store(tmp_path, kit.random_groups(2, 2, 1))
    batch = collate(store, [0, 1], store.valid)
    ours, theirs = kit.tiny_model(name), kit.tiny_model(name)
    vocabulary, num = ours.config.vocab_size, len(batch.labels)
    ids = some_ids(10, 3, num, vocabulary)
    logps = torch.where(ids >= 0, torch.randn(num, 10, generator=torch.Generator().manual_seed(2)).double(), -torch.inf)
    fused = Fused(logps, ids >= 0, torch.full((num,), -torch.inf))
    mask = torch.ones(num, dtype=torch.bool)
    with kit.KeepDouble():
        states = trained_states(ours, batch, "sdpa")
        policy = at_support(states, Head.of(ours), batch.labels, ids, rows=5, temperature=temperature)
        sums = summed(fused, policy, batch.owner, mask, num_sequences=4, divergence=cross_entropy, tail="renormalise")
        totals = combined(sums, 0.9)
        totals.sum.sum().backward()
        wanted = torch.zeros(())
        for owner, sequence in enumerate(s for s in batch.segments if not s.is_prompt):
            tokens = torch.cat(
                [batch.input_ids[slice(*sequence.prompt)], batch.input_ids[sequence.start : sequence.end]]
            )
            at = batch.owner == owner
            z = theirs(input_ids=tokens[None]).logits[0, -int(at.sum()) - 1 : -1]
            p = torch.zeros(len(z), vocabulary + 1, dtype=z.dtype)
            p.scatter_(
                1, torch.where(ids[at] >= 0, ids[at], vocabulary), (logps[at] / temperature).softmax(1).to(z.dtype)
            )
            clm = torch.nn.functional.cross_entropy(z, batch.labels[at], reduction="sum")
            fusion = -(p[:, :-1] * (z / temperature).log_softmax(dim=1)).sum()
            wanted = wanted + 0.9 * clm + 0.1 * fusion
        wanted.backward()
    assert totals.count.sum() == num
    assert_close(totals.sum.sum(), wanted, rtol=0, atol=1e-10)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(mine.grad, reference.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_part_gets_no_gradient(frozen: str) -> None:
    hidden, head = head_and_states(bias=True)
    (hidden if frozen == "hidden" else head.weight).requires_grad_(False)
    mixed(at_support(hidden, head, LABELS, some_ids(4), rows=3)).backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (head.weight.grad is None) == (frozen == "weight")
    assert head.bias is not None
    assert head.bias.grad is not None


def test_nothing_to_do_and_nothing_to_learn() -> None:
    hidden, head = head_and_states()
    with torch.no_grad():
        agree(at_support(hidden, head, LABELS, some_ids(4), rows=2), dense(hidden, head, LABELS, some_ids(4)))
    empty = at_support(hidden[:0], head, LABELS[:0], some_ids(4)[:0], rows=2)
    assert [len(part) for part in empty[:4]] == [0, 0, 0, 0]
    mixed(empty).backward()
    assert not head.weight.grad.any()


@pytest.mark.parametrize("way", ["bf16", "autocast"])
def test_low_precision_stays_near_the_exact_gradient(way: str) -> None:
    """Products in bf16; outputs and sums in fp32; under autocast the weights stay in fp32."""
    found = []
    for low in (False, True):
        hidden, head = head_and_states(bias=True, dtype=torch.bfloat16)
        dtype = torch.bfloat16 if low and way == "bf16" else torch.float32
        hidden, weight, bias = (part.detach().to(dtype).requires_grad_() for part in (hidden, *head[:2]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low and way == "autocast"):
            policy = at_support(hidden, Head(weight, bias), LABELS, some_ids(4), rows=3, temperature=2.0)
        mixed(policy).backward()
        assert policy.rest.dtype == torch.float32
        assert weight.grad.dtype == hidden.grad.dtype == dtype
        found.append((*policy[:4], hidden.grad, weight.grad, bias.grad))
    for exact, near in zip(*found, strict=True):
        assert_close(near.float(), exact.float(), rtol=0, atol=0.03 * float(exact.detach().abs().max()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_a_temperature_is_above_none(temperature: float) -> None:
    with pytest.raises(FuserlError, match="temperature"):
        at_support(*head_and_states(), LABELS, some_ids(4), rows=2, temperature=temperature)

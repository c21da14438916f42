"""Sparse divergences against dense ones, by laws: nothing that is known of P and Q is lost, nothing unknown is used."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.objectives import distillation
from fuserl.objectives.distillation import Fused, Policy, Sums, combined, events, given, summed

T, V, U = 7, 9, 3
FLOOR = 1e-6
DIVERGENCES = {
    "cross_entropy": distillation.cross_entropy,
    "forward_kl": distillation.forward_kl,
    "reverse_kl": partial(distillation.reverse_kl, floor=FLOOR),
    "jensen_shannon": distillation.jensen_shannon,
}
TAILS = ["renormalise", "bucket", "drop"]
TAUS = [1.0, 2.5, 0.7]
GOLD = torch.arange(T) % V
OWNER = torch.arange(T) % U
ALL = torch.ones(T, dtype=torch.bool)
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)
every_tail = pytest.mark.parametrize("tail", TAILS)
every_tau = pytest.mark.parametrize("tau", TAUS)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_ids(k: int, seed: int = 1) -> torch.Tensor:
    return draw(T, V, seed=seed).argsort(dim=1)[:, :k]


def outside(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """log Σ exp of what is at no id; -1 is no id."""
    held = torch.zeros(len(values), V + 1, dtype=torch.bool).scatter(1, torch.where(ids >= 0, ids, V), True)
    return torch.where(held[:, :V], -torch.inf, values).logsumexp(dim=1)


def policy_at(z: torch.Tensor, ids: torch.Tensor, tau: float = 1.0, gold: torch.Tensor = GOLD) -> Policy:
    logits = torch.where(ids >= 0, z.gather(1, ids.clamp(min=0)), 0.0)
    return Policy(logits, z.gather(1, gold[:, None])[:, 0], outside(ids, z), outside(ids, z / tau), tau)


def fused_at(log_p: torch.Tensor, ids: torch.Tensor) -> Fused:
    log_p = log_p.log_softmax(dim=1)
    return Fused(log_p.gather(1, ids.clamp(min=0)), ids >= 0, outside(ids, log_p))


def value_and_slope(loss, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = z.clone().requires_grad_()
    value = loss(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def sparse(name: str, log_p: torch.Tensor, ids: torch.Tensor, tail: str, tau: float):
    return lambda z: DIVERGENCES[name](events(fused_at(log_p, ids), policy_at(z, ids, tau), tail=tail))


def assert_agree(one, other, z: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Same values and same slopes in the logits."""
    for mine, theirs in zip(value_and_slope(one, z), value_and_slope(other, z), strict=True):
        assert_close(mine, theirs, rtol=0, atol=tolerance)


def dense(name: str, log_p: torch.Tensor, tau: float):
    """Torch's own divergences of softmax(log p / τ) and softmax(z / τ)."""
    log_p = (log_p.log_softmax(dim=1) / tau).log_softmax(dim=1)

    def loss(z: torch.Tensor) -> torch.Tensor:
        log_q = (z / tau).log_softmax(dim=1)
        if name == "cross_entropy":
            return F.cross_entropy(z / tau, log_p.exp(), reduction="none")
        if name == "forward_kl":
            return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
        if name == "reverse_kl":
            return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
        log_m = ((log_p.exp() + log_q.exp()) / 2).log()
        return sum(F.kl_div(log_m, side, reduction="none", log_target=True).sum(dim=1) for side in (log_p, log_q)) / 2

    return loss


@every_divergence
@every_tail
@every_tau
def test_all_tokens_kept_is_the_dense_divergence(name: str, tail: str, tau: float) -> None:
    z, log_p = draw(T, V), draw(T, V, seed=2)
    assert_agree(sparse(name, log_p, some_ids(V), tail, tau), dense(name, log_p, tau), z)


@every_tau
def test_the_papers_loss_is_cross_entropy_with_a_dense_p_of_ten_entries(tau: float) -> None:
    """FuseChat step 5 and its trainer, literally: softmax(logits / T) over what is stored, zero elsewhere."""
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    stored = log_p.log_softmax(dim=1).gather(1, ids)
    whole = torch.zeros(T, V, dtype=torch.float64).scatter(1, ids, (stored / tau).softmax(dim=1))
    assert_agree(
        sparse("cross_entropy", log_p, ids, "renormalise", tau),
        lambda z: -(whole * (z / tau).log_softmax(dim=1)).sum(dim=1),
        z,
    )


@every_divergence
@every_tau
def test_a_bucket_is_one_token_more(name: str, tau: float) -> None:
    """The k kept tokens and the sum of the others, as a vocabulary of k + 1, in torch's own divergences."""
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    fused = fused_at(log_p, ids)
    small = torch.cat([fused.logps, fused.tail[:, None]], dim=1)

    def loss(z: torch.Tensor) -> torch.Tensor:
        kept = z.log_softmax(dim=1).gather(1, ids)
        return dense(name, small, tau)(torch.cat([kept, (1 - kept.exp().sum(dim=1, keepdim=True)).log()], dim=1))

    assert_agree(sparse(name, log_p, ids, "bucket", tau), loss, z, 1e-11)


@every_divergence
@every_tau
def test_dropping_is_the_bucket_without_its_term(name: str, tau: float) -> None:
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    whole = events(fused_at(log_p, ids), policy_at(z, ids, tau), tail="bucket")
    last = [side[:, -1:] for side in whole]
    nothing = torch.full((T, 1), distillation.NOTHING, dtype=torch.float64)
    alone = DIVERGENCES[name](distillation.Events(*(torch.cat([nothing, side], dim=1) for side in last)))
    dropped = sparse(name, log_p, ids, "drop", tau)(z)
    assert_close(dropped + alone, DIVERGENCES[name](whole))
    assert (alone.abs() > 1e-3).any()


@every_tail
@pytest.mark.parametrize("name", ["cross_entropy", "forward_kl"])
def test_one_hot_on_the_gold_token_is_clm(name: str, tail: str) -> None:
    z, ids = draw(T, V), GOLD[:, None]
    one_hot = Fused(torch.zeros(T, 1), torch.ones(T, 1, dtype=torch.bool), torch.full((T,), -torch.inf))

    def loss(z: torch.Tensor) -> torch.Tensor:
        return DIVERGENCES[name](events(one_hot, policy_at(z, ids), tail=tail))

    assert_agree(loss, lambda z: F.cross_entropy(z, GOLD, reduction="none"), z)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize(("k", "tail"), [(V, "renormalise"), (V, "bucket"), (V, "drop"), (4, "bucket"), (1, "bucket")])
@every_tau
def test_the_policys_own_distribution_leaves_nothing_to_learn(name: str, k: int, tail: str, tau: float) -> None:
    z = draw(T, V)
    value, slope = value_and_slope(sparse(name, z, some_ids(k), tail, tau), z)
    assert_close(value, torch.zeros(T, dtype=torch.float64), rtol=0, atol=1e-13)
    assert_close(slope, torch.zeros_like(z), rtol=0, atol=1e-13)


@pytest.mark.parametrize("tail", ["renormalise", "drop"])
def test_the_others_pull_even_there(tail: str) -> None:
    """Why `bucket` is offered: without it the policy is drawn onto the kept tokens."""
    z, ids = draw(T, V), some_ids(4)
    _, slope = value_and_slope(sparse("forward_kl", z, ids, tail, 1.0), z)
    assert (slope.gather(1, ids).sum(dim=1) < -1e-3).all()


@every_tail
@every_tau
def test_cross_entropy_has_the_gradient_of_forward_kl(tail: str, tau: float) -> None:
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    slopes = [value_and_slope(sparse(name, log_p, ids, tail, tau), z)[1] for name in ("cross_entropy", "forward_kl")]
    assert_close(*slopes)


@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
def test_jensen_shannon_is_symmetric_and_bounded(scale: float) -> None:
    z, log_p, ids = draw(T, V, scale=scale), draw(T, V, seed=2, scale=scale), some_ids(4)
    there, back = (sparse("jensen_shannon", a, ids, "bucket", 1.0)(b) for a, b in ((log_p, z), (z, log_p)))
    assert_close(there, back)
    assert (there > -1e-13).all()
    assert (there < math.log(2) + 1e-13).all()


def test_worked_by_hand() -> None:
    """P = (½, ¼ | ¼ not kept), z = (ln 4, ln 2, ln 1, ln 1): q = ½, ¼, ⅛, ⅛."""
    fused = Fused(torch.tensor([[0.5, 0.25]]).log(), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0.25]).log())
    z = torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64).log()
    policy = policy_at_four(z)
    renormalised = -(2 / 3 * math.log(1 / 2) + 1 / 3 * math.log(1 / 4))
    assert distillation.cross_entropy(events(fused, policy)).item() == pytest.approx(renormalised, abs=1e-6)
    bucket = 1.5 * math.log(2)
    assert distillation.cross_entropy(events(fused, policy, tail="bucket")).item() == pytest.approx(bucket, abs=1e-6)
    dropped = math.log(2)
    assert distillation.cross_entropy(events(fused, policy, tail="drop")).item() == pytest.approx(dropped, abs=1e-6)
    floored = 0.25 * math.log(0.25 / 0.01) + 0.5 * math.log(0.5 * 1.5) + 0.25 * math.log(0.25 * 3)
    reverse = distillation.reverse_kl(events(fused, policy), floor=0.01)
    assert reverse.item() == pytest.approx(floored, abs=1e-6)


def policy_at_four(z: torch.Tensor) -> Policy:
    return Policy(z[:, :2], z[:, 2], z[:, 2:].logsumexp(dim=1), z[:, 2:].logsumexp(dim=1))


@every_divergence
@every_tail
@every_tau
def test_order_and_padding_of_the_support_do_not_matter(name: str, tail: str, tau: float) -> None:
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    turned = torch.full((T, 7), -1)
    turned[:, [5, 1, 6, 2]] = ids
    fused, policy = fused_at(log_p, turned), policy_at(z, turned, tau)
    fused = fused._replace(logps=torch.where(fused.kept, fused.logps, torch.nan))
    policy = policy._replace(logits=torch.where(fused.kept, policy.logits, torch.nan))
    got = DIVERGENCES[name](events(fused, policy, tail=tail))
    assert_close(got, sparse(name, log_p, ids, tail, tau)(z))
    assert_close(distillation.clm(fused.kept, policy), F.cross_entropy(z, GOLD, reduction="none"))


@every_divergence
@every_tail
def test_temperature_one_is_none_and_any_other_counts(name: str, tail: str) -> None:
    z, log_p, ids = draw(T, V), draw(T, V, seed=2), some_ids(4)
    losses = {tau: sparse(name, log_p, ids, tail, tau)(z) for tau in (1.0, 2.0)}
    untouched = policy_at(z, ids)._replace(tempered=draw(T, seed=5))
    if tail != "renormalise":  # which is over events, not over the vocabulary
        assert_close(DIVERGENCES[name](events(fused_at(log_p, ids), untouched, tail=tail)), losses[1.0])
    assert (losses[1.0] - losses[2.0]).abs().min() > 1e-4

    def total(tau: float, power: float) -> torch.Tensor:
        policy = policy_at(z, ids, tau)
        return summed(
            fused_at(log_p, ids), policy, OWNER, ALL, num_sequences=U, divergence=DIVERGENCES[name], tail=tail,
            temperature_power=power,
        ).divergence  # fmt: skip

    assert_close(total(1.0, 2), total(1.0, 0))
    assert_close(total(3.0, 2), 9 * total(3.0, 0))


@pytest.mark.parametrize("name", ["cross_entropy", "forward_kl", "reverse_kl"])
def test_the_square_of_the_temperature_keeps_the_gradients_size(name: str) -> None:
    """arXiv:1503.02531: for high τ the gradient times τ² is that of half the squared distance of centred logits, over V."""
    z, log_p = draw(T, V), draw(T, V, seed=2)
    matched = (z - z.mean(dim=1, keepdim=True)) - (log_p - log_p.mean(dim=1, keepdim=True))
    _, slope = value_and_slope(sparse(name, log_p, some_ids(V), "renormalise", 1e4), z)
    assert_close(slope * 1e4**2, matched / V, rtol=0, atol=1e-3)


def parts(seed: int = 0, k: int = 4, tau: float = 1.0) -> tuple[Fused, Policy]:
    ids = some_ids(k, seed + 1)
    return fused_at(draw(T, V, seed=seed + 2), ids), policy_at(draw(T, V, seed=seed), ids, tau)


def run(fused: Fused, policy: Policy, owner=OWNER, mask=ALL, name: str = "cross_entropy", **changed):
    share = changed.pop("share", partial(distillation.fixed, value=0.9))(changed.pop("progress", 0.0))
    setting = dict(num_sequences=U, divergence=DIVERGENCES[name], tail="bucket")
    return combined(summed(fused, policy, owner, mask, **(setting | changed)), share)


def with_nan(values: NamedTuple, rows: torch.Tensor):
    """The tuple with NaN in some rows of every tensor of numbers."""
    return type(values)(
        *(
            part.index_fill(0, rows, torch.nan) if torch.is_tensor(part) and part.is_floating_point() else part
            for part in values
        )
    )


@every_divergence
@every_tail
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_a_masked_position_is_an_absent_one(name: str, tail: str, tau: float) -> None:
    away, there = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5, 6])
    fused, policy = parts(tau=tau)
    leaf = policy._replace(logits=policy.logits.clone().requires_grad_(), rest=policy.rest.clone().requires_grad_())
    mask, owner = ALL.index_fill(0, away, False), OWNER.index_fill(0, away, 99)
    masked = run(with_nan(fused, away), with_nan(leaf, away), owner, mask, name, tail=tail)
    shorter = run(
        Fused(*(part[there] for part in fused)),
        Policy(*(part[there] for part in policy[:4]), tau),
        OWNER[there], ALL[there], name, tail=tail,
    )  # fmt: skip
    assert_close(masked, shorter)
    for slope in torch.autograd.grad(masked.sum.sum(), (leaf.logits, leaf.rest)):
        assert (slope[away] == 0).all()
        assert slope.isfinite().all()
        assert (slope[there] != 0).any()


@every_divergence
@every_tail
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_a_position_without_a_distribution_is_clm(name: str, tail: str, tau: float) -> None:
    fused, policy = parts(tau=tau)
    empty = fused._replace(kept=torch.zeros_like(fused.kept))
    policy = policy._replace(rest=torch.cat([policy.logits, policy.rest[:, None]], dim=1).logsumexp(dim=1))
    policy = policy._replace(rest=policy.rest.requires_grad_())
    sums = summed(empty, policy, OWNER, ALL, num_sequences=U, divergence=DIVERGENCES[name], tail=tail)
    assert_close(sums.divergence, sums.clm)
    slopes = (torch.autograd.grad(part.sum(), policy.rest, retain_graph=True)[0] for part in sums[:2])
    assert_close(*slopes)
    assert sums.num_given.tolist() == [0.0] * U
    assert given(empty).tolist() == [False] * T
    assert_close(run(empty, policy, share=partial(distillation.fixed, value=0.3), temperature_power=2).sum, sums.clm)


def test_shares_of_one_and_none() -> None:
    fused, policy = parts()
    sums = summed(fused, policy, OWNER, ALL, num_sequences=U, divergence=DIVERGENCES["forward_kl"], tail="bucket")
    plain = torch.zeros(U, dtype=torch.float64).index_add(0, OWNER, F.cross_entropy(draw(T, V), GOLD, reduction="none"))
    assert_close(sums.clm, plain)
    assert_close(combined(sums, 1).sum, plain)
    assert_close(combined(sums, 0).sum, sums.divergence)
    assert_close(combined(sums, 0.9).sum, 0.9 * sums.clm + 0.1 * sums.divergence)
    endless = sums._replace(divergence=torch.full_like(sums.divergence, torch.inf))
    assert_close(combined(endless, 1).sum, plain)
    rising = partial(distillation.rising, start=0.5)
    for progress, share in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        got = run(fused, policy, name="forward_kl", share=rising, progress=progress)
        assert_close(got.sum, combined(sums, share).sum)
    assert distillation.fixed(0.7, value=0.9) == 0.9


def test_totals_count_positions_and_are_never_means() -> None:
    fused, policy = parts()
    mask = torch.tensor([True, True, False, True, True, True, True])  # the third sequence has 2 positions, masks one
    totals = run(fused, policy, OWNER, mask, num_sequences=U + 1)
    assert totals.count.tolist() == [3.0, 2.0, 1.0, 0.0]
    assert totals.weight.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert totals.sum[3] == 0.0
    one_by_one = [run(fused, policy, OWNER, mask & (torch.arange(T) == t)).sum for t in range(T)]
    assert_close(totals.sum[:U], torch.stack(one_by_one).sum(dim=0))


@every_divergence
def test_totals_of_micro_batches_add_up(name: str) -> None:
    batches = [parts(seed) for seed in (0, 10, 20)]
    whole = run(
        Fused(*(torch.cat(column) for column in zip(*(fused for fused, _ in batches), strict=True))),
        Policy(*(torch.cat(column) for column in zip(*(policy[:4] for _, policy in batches), strict=True))),
        torch.cat([OWNER + U * number for number in range(3)]), ALL.repeat(3), name, num_sequences=3 * U,
    )  # fmt: skip
    separate = [run(fused, policy, name=name) for fused, policy in batches]
    for column, mine in zip(whole, zip(*separate, strict=True), strict=True):
        assert_close(column, torch.cat(mine))


@every_divergence
@every_tail
def test_a_sure_policy_in_fp32_against_a_stored_p_in_fp16(name: str, tail: str) -> None:
    """Logits 300 nats apart, P with its tail at the lowest number that fp16 has, or with all its mass there."""
    logits = torch.tensor([[300.0, 0.0], [0.0, -300.0]]).requires_grad_()
    rest = torch.tensor([-30.0, 250.0]).requires_grad_()
    policy = Policy(logits, torch.zeros(2), rest, rest / 2, 2.0)
    low = torch.finfo(torch.float16).min
    fused = Fused(
        torch.tensor([[-0.5, low], [-1.0, -20.0]]).half(), ALL[:2, None].expand(2, 2), torch.tensor([low, -0.5]).half()
    )
    value = DIVERGENCES[name](events(fused, policy, tail=tail))
    slopes = torch.autograd.grad(value.sum(), (logits, rest), allow_unused=True, materialize_grads=True)
    assert value.dtype == torch.float32
    assert all(part.isfinite().all() for part in (value, *slopes))


def test_p_carries_no_gradient() -> None:
    fused, policy = parts()
    fused = fused._replace(logps=fused.logps.requires_grad_())
    assert not events(fused, policy).log_p.requires_grad


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: run(*parts(), tail="keep"), "`keep` is no choice of `tail`"),
        (lambda: run(*parts(), temperature_power=-1), "temperature_power"),
        (lambda: distillation.fixed(0.0, value=1.1), "share.value"),
        (lambda: distillation.rising(0.0, start=-0.1), "share.start"),
        (lambda: combined(Sums(*torch.zeros(4, U)), 2), "`share`"),
        (lambda: distillation.reverse_kl(events(*parts()), floor=0.0), "divergence.floor"),
    ],
)
def test_what_is_refused(call, says: str) -> None:
    with pytest.raises(FuserlError, match=says):
        call()

"""Hand-worked numbers, one table a loss, and switches that the laws do not pin down."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.tables import NAN, hand_table, hide, loss_and_gradient, objective, random_table
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.objectives import rloo, supervised, wrpo
from fuserl.objectives.terms import Objective, within

WRPO_TABLE = {
    "rewards": [[0.9, 0.3, 0.6, 0.2]],
    "source": [[1, 1, 0, 0]],  # best and worst of a source, best and worst of the target
    "policy_logps": [[12.0, 99.0, 5.0, -3.0]],
}


def softplus(value: float) -> float:
    """-log σ(-value)."""
    return math.log1p(math.exp(value))


def test_wrpo_number_of_the_paper() -> None:
    scores = hand_table(**WRPO_TABLE)
    totals = wrpo.wrpo_dpo(scores, target=0, beta=0.01, alpha=0.1, schedule="constant")
    assert totals.sum.item() == pytest.approx(0.650593, abs=5e-7)  # z = 0.01 (0.1 * 12 + 0.9 * 5 + 3) = 0.087
    halfway = wrpo.wrpo_dpo(scores, target=0, beta=0.01, alpha=0.2, progress=0.5)
    assert_close(halfway.sum, totals.sum)


def test_wrpo_average_of_two_losses() -> None:
    scores = hand_table(**WRPO_TABLE)
    ours = wrpo.wrpo_dpo(scores, target=0, beta=0.01, alpha=0.1, schedule="constant", form="average")
    assert ours.sum.item() == pytest.approx(0.1 * softplus(-0.15) + 0.9 * softplus(-0.08), rel=1e-12)


def test_wrpo_ipo_and_simpo_by_hand() -> None:
    scores = hand_table(**WRPO_TABLE, num_tokens=[[4, 9, 5, 3]])
    ipo = wrpo.wrpo_ipo(scores, target=0, tau=0.1, alpha=0.1, schedule="constant")
    assert ipo.sum.item() == pytest.approx((1.2 + 4.5 + 3 - 5) ** 2, rel=1e-12)
    ours = wrpo.wrpo_simpo(scores, target=0, beta=2.0, gamma_beta_ratio=0.5, alpha=0.5, schedule="constant")
    assert ours.sum.item() == pytest.approx(softplus(-(2 * (0.5 * 3 + 0.5 * 1 + 1) - 1)), rel=1e-12)
    with_nll = wrpo.wrpo_simpo(scores, target=0, beta=2.0, gamma_beta_ratio=0.5, alpha=0.5, schedule="constant", nll=1)
    assert_close(with_nll.sum, ours.sum - (0.5 * 3 + 0.5 * 1))
    assert wrpo.wrpo_ipo(scores, target=0, tau=0.1, alpha=0.1, count="token").count.tolist() == [12.0]


@pytest.mark.parametrize(
    "rewards",
    [[[0.9, 0.3, 0.6, 0.6]], [[NAN, NAN, 0.6, 0.2]], [[0.9, 0.3, NAN, 0.2]]],
    ids=["equal", "source", "target"],
)
def test_wrpo_needs_all_three(rewards: list[list[float]]) -> None:
    totals = objective("wrpo").loss(hand_table(**{**WRPO_TABLE, "rewards": rewards}), progress=0.5)
    assert [part.item() for part in totals] == [0.0, 0.0, 0.0]


def test_fusesft_by_hand() -> None:
    scores = hand_table(
        [[0.15, 0.14, 0.13, 0.12, 0.11]],
        [[0, 0, 1, 1, 2]],
        policy_logps=[[-10.0, -20.0, -30.0, -40.0, -1000.0]],
        num_tokens=[[1, 2, 3, 4, 50]],
    )
    weights = [0.643914, 0.236883, 0.087144, 0.032059]
    totals = objective("fusesft", "weights.tau=0.01").loss(scores, progress=0.0)
    assert totals.sum.item() == pytest.approx(sum(w * 10 * (m + 1) for m, w in enumerate(weights)), rel=1e-5)
    assert totals.count.item() == pytest.approx(sum(w * (m + 1) for m, w in enumerate(weights)), rel=1e-5)
    by_token = objective("fusesft", "weights.tau=0.01", "objective.normalize=length", "objective.count=prompt")
    assert [part.item() for part in by_token.loss(scores, progress=0.0)] == pytest.approx([10.0, 1.0, 1.0])


def test_pools() -> None:
    scores = hand_table([[0.5, 0.9, 0.9, 0.1, NAN, 0.3]], [[0, 0, 1, 1, 2, 3]])
    assert supervised.top(scores, size=2)[0].tolist() == [False, True, True, False, False, False]
    assert supervised.top(scores, size=1)[0].tolist() == [False, True, False, False, False, False]
    assert supervised.top(scores, size=5)[0].tolist() == [True, True, True, True, False, True]
    assert supervised.top(scores, size=6)[0].all(), "nothing to choose, so nothing needs a score"
    assert supervised.per_source(scores)[0].tolist() == [False, True, True, False, True, True]
    unscored = scores._replace(rewards=torch.full_like(scores.rewards, NAN))
    assert not supervised.top(unscored, size=5).any(), "the best of unscored responses is nobody's to say"
    assert supervised.per_source(unscored)[0].tolist() == [False, False, False, False, True, True]
    without_first_best = hide(scores, torch.arange(6)[None] == 1)
    assert supervised.top(without_first_best, size=1)[0].nonzero().tolist() == [[2]]


def test_rloo_by_hand() -> None:
    scores = hand_table([[1.0, 0.0, 0.5, 0.7]], [[0, 0, 0, 1]], policy_logps=[[-2.0, -3.0, -4.0, -5.0]])
    ours = objective("fusepo_rloo", "objective.kl=0").loss(scores, progress=0.0)
    assert ours.sum.item() == pytest.approx(-(0.75 * -2 - 0.75 * -3 + 0 * -4) / 3)
    together = objective("fusepo_rloo", "objective.kl=0", "objective.baseline=prompt").loss(scores, progress=0.0)
    mean = 2.2 / 4
    advantages = [(r - mean) * 4 / 3 for r in (1.0, 0.0, 0.5, 0.7)]
    assert together.sum.item() == pytest.approx(-sum(a * -(2 + n) for n, a in enumerate(advantages)) / 4)


def test_a_source_with_one_sample_adds_exactly_nothing_to_rloo() -> None:
    scores = random_table(3, P=2, K=5)._replace(source=torch.tensor([[0, 0, 0, 0, 1]]).expand(2, 5))
    without = hide(scores, torch.arange(5).expand(2, 5) == 4)
    ours, theirs = (loss_and_gradient(objective("fusepo_rloo"), s) for s in (scores, without))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_rloo_advantages_sum_to_zero_and_keep_the_rewards_scale() -> None:
    rewards = torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = torch.ones(2, 6, 6, dtype=torch.bool)
    ours = rloo.leave_one_out(rewards, together)
    assert_close(ours.sum(dim=1), torch.zeros(2, dtype=torch.float64))
    assert_close(rloo.leave_one_out(10 * rewards, together), 10 * ours)  # no division by a standard deviation


def test_rloo_kl_is_detached() -> None:
    scores = random_table(1)
    plain, with_kl = (objective("fusepo_rloo", f"objective.kl={kl}") for kl in (0, 0.1))
    lowered = scores._replace(rewards=scores.rewards - 0.1 * (scores.policy_logps - scores.reference_logps))
    best = with_kl.select(scores) & (scores.source == 0)
    one_source = hide(scores, ~best)  # weights look at the rewards themselves, so with one source they are 1 in both
    lowered = hide(lowered, ~best)
    assert_close(loss_and_gradient(with_kl, one_source)[3], loss_and_gradient(plain, lowered)[3])


def test_clipping_starts_with_the_plain_gradient_and_stops_far_away() -> None:
    scores = random_table(2)
    clipped, plain = (objective("fusepo_rloo", "objective.kl=0", f"objective.clip={clip}") for clip in ("0.2", "null"))
    untrained = scores._replace(policy_logps=scores.reference_logps)
    assert_close(loss_and_gradient(clipped, untrained)[3], loss_and_gradient(plain, untrained)[3])
    up, down = torch.full((1,), 500.0, dtype=torch.float64), torch.full((1,), -500.0, dtype=torch.float64)
    for log_ratio, advantage, moves in ((up, 1.0, 0), (down, -1.0, 0), (up, 0.0, 0)):
        log_ratio = log_ratio.clone().requires_grad_()
        gain = rloo.clipped_gain(log_ratio, torch.full_like(log_ratio.detach(), advantage), clip=0.2)
        (gradient,) = torch.autograd.grad(gain.sum(), log_ratio)
        assert gain.isfinite().all()
        assert gradient.item() == moves


def test_nll_adds_the_weighted_cross_entropy_of_the_chosen() -> None:
    scores = random_table(4)
    plain, with_nll = (objective("fusepo_dpo", f"objective.nll={nll}") for nll in (0, 2))
    chosen = objective("fusepo_dpo", "objective.masked=renormalise")
    pairs = chosen.pairs(scores)
    weighed = chosen.loss(scores, progress=0.0)
    per_token = -(scores.policy_logps / scores.num_tokens).gather(1, pairs.chosen)
    best = scores.rewards.gather(1, pairs.chosen)
    weight = torch.where(pairs.valid, (best / 0.3).exp(), 0.0)
    weight = weight / weight.sum(dim=1, keepdim=True)
    expected = weighed.sum + 2 * (weight * per_token).sum(dim=1)
    assert_close(with_nll.loss(scores, progress=0.0).sum, expected)
    assert_close(plain.loss(scores, progress=0.0).sum, weighed.sum)


def test_simpo_margin_is_gamma() -> None:
    scores = hand_table([[1.0, 0.0]], [[0, 0]], policy_logps=[[-6.0, -8.0]], num_tokens=[[3, 2]])
    ours = objective("fusepo_simpo", "objective.beta=2", "objective.gamma_beta_ratio=0.5").loss(scores, progress=0.0)
    assert ours.sum.item() == pytest.approx(softplus(-(2 * (-2 + 4) - 1.0)), rel=1e-12)


def test_losses_run_in_32_bits_and_stay_there() -> None:
    scores = random_table(6)
    narrow = type(scores)(*(c.float() if c.is_floating_point() else c for c in scores))
    for name in ("fusesft", "fusepo_dpo", "fusepo_rloo", "wrpo"):
        ours, exact = (objective(name).loss(s, progress=0.5) for s in (narrow, scores))
        assert {part.dtype for part in ours} == {torch.float32}
        assert_close([part.double() for part in ours], list(exact), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("fusepo_dpo", "masked=keeep"),
        ("fusepo_dpo", "count=tokens"),
        ("fusepo_dpo", "normalize=len"),
        ("fusesft", "pool=best"),
        ("fusepo_rloo", "baseline=all"),
        ("wrpo", "form=mean"),
        ("wrpo", "schedule=cosine"),
    ],
)
def test_a_choice_that_does_not_exist_is_named(name: str, setting: str) -> None:
    key, value = setting.split("=")
    with pytest.raises(FuserlError, match=f"`{value}` is no choice of `{key}`") as error:
        objective(name, f"objective.{setting}").loss(random_table(0), progress=0.0)
    assert "one of" in error.value.hint


OUT_OF_RANGE = [  # settings that once were taken in silence: they turn the preference round, or read other responses
    *((name, "beta", value) for name in ("fusepo_dpo", "dpo_best", "fusepo_simpo", "wrpo", "wrpo_simpo") for value in ("0", "-0.1")),
    *((name, "label_smoothing", value) for name in ("fusepo_dpo", "fusepo_simpo", "wrpo") for value in ("0.5", "-0.1", "1")),
    *((name, "alpha", value) for name in ("wrpo", "wrpo_ipo", "wrpo_simpo") for value in ("-0.1", "1.1")),
    *((name, "gamma_beta_ratio", "-0.1") for name in ("fusepo_simpo", "wrpo_simpo")),
    *((name, "nll", "-1") for name in ("fusepo_dpo", "fusepo_simpo", "fusepo_rloo", "wrpo")),
    *((("wrpo_ipo", "tau", value)) for value in ("0", "-1")),
    ("fusepo_rloo", "kl", "-0.1"),
    *(("fusepo_rloo", "clip", value) for value in ("0", "-0.2")),
    *(("fusesft", "size", value) for value in ("0", "-1")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused(name: str, key: str, value: str) -> None:
    with pytest.raises(FuserlError, match=f"`-?{value.lstrip('-')}(.0)?` is no ") as error:
        objective(name, f"objective.{key}={value}").loss(random_table(0), progress=0.5)
    assert error.value.where == f"`objective.{key}`"
    assert "number" in error.value.hint


@pytest.mark.parametrize(
    ("name", "setting"),
    [("fusepo_dpo", "label_smoothing=0.49"), ("wrpo", "alpha=1"), ("wrpo", "alpha=0"), ("fusepo_rloo", "kl=0"),
     ("fusepo_simpo", "gamma_beta_ratio=0"), ("fusepo_dpo", "nll=0"), ("fusesft", "size=1"), ("fusepo_rloo", "clip=1")],
)  # fmt: skip
def test_the_ends_of_ranges_are_taken(name: str, setting: str) -> None:
    assert objective(name, f"objective.{setting}").loss(random_table(0), progress=0.5).sum.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_infinite_number_is_within_an_open_range(value: float) -> None:
    with pytest.raises(FuserlError):
        within("beta", value, "(0, inf)")


def test_an_objective_takes_only_what_its_loss_takes() -> None:
    good = objective("fusesft")
    with pytest.raises(FuserlError, match="does not take betta"):
        Objective.of("mine", supervised.fusesft, good.select, pool="top", size=1, weights=None, betta=0.1)
    with pytest.raises(FuserlError, match="it needs pool, weights"):
        Objective.of("mine", supervised.fusesft, good.select, size=1)

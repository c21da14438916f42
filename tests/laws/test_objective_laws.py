"""What must hold for every objective, whatever the numbers are. Everything in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.tables import NAMES, NAN, RULES, hand_table, hide, loss_and_gradient, objective, permuted, random_table
from torch.testing import assert_close

from fuserl.objectives.terms import GroupScores

SEEDS = st.integers(0, 10**6)
DPO_FAMILY = tuple(name for name in NAMES if objective(name).starts_at_ln2)
FUSED = ("fusepo_dpo", "fusepo_simpo", "fusepo_rloo", "fusesft")
SWITCHES = {
    "sft_best": [(), ("objective.normalize=length",), ("objective.count=prompt",)],
    "fusesft": [
        (),
        ("objective.pool=per_source",),
        ("objective.normalize=length",),
        ("weights=rank",),
        ("weights=given",),
    ],
    "dpo_best": [(), ("objective.normalize=length",), ("objective.pairs.min_gap=0.4", "objective.pairs.max_gap=0.9")],
    "fusepo_dpo": [
        (),
        ("objective.masked=keep", "objective.nll=0.5"),
        ("objective.normalize=length", "objective.count=token", "objective.label_smoothing=0.1"),
        ("pairs=across_sources", "weights=rank"),
        ("pairs=best_source", "weights=best"),
    ],
    "fusepo_simpo": [(), ("objective.masked=keep", "weights=given"), ("objective.nll=1", "objective.count=token")],
    "fusepo_rloo": [
        (),
        ("objective.kl=0", "objective.masked=keep"),
        ("objective.clip=0.2", "objective.nll=0.3"),
        ("objective.baseline=prompt", "objective.count=token"),
    ],
    "wrpo": [
        (),
        ("objective.form=average", "objective.nll=1"),
        ("objective.schedule=constant", "objective.count=token"),
    ],
    "wrpo_ipo": [(), ("objective.form=average",)],
    "wrpo_simpo": [(), ("objective.gamma_beta_ratio=0.2", "objective.label_smoothing=0.1")],
}
ALL = [pytest.param(name, ways, id=" ".join((name, *ways))) for name in NAMES for ways in SWITCHES.get(name, [()])]


def some_equal(scores: GroupScores) -> GroupScores:
    """Every reward of one source equal, so that it is masked where sources are compared within."""
    return scores._replace(rewards=torch.where(scores.source == 1, scores.valid * 0.25, scores.rewards))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_a_masked_response_is_an_absent_one(name: str, ways: tuple[str, ...], seed: int) -> None:
    whole = some_equal(random_table(seed, K=7))
    shorter = GroupScores(*(column[:, :5] for column in whole))
    last_two = torch.arange(7) >= 5
    *ours, gradient = loss_and_gradient(objective(name, *ways), hide(whole, last_two.expand(4, 7)))
    *theirs, their_gradient = loss_and_gradient(objective(name, *ways), shorter)
    assert_close(ours, theirs)
    assert_close(gradient, F.pad(their_gradient, (0, 2)))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_what_absent_entries_hold_never_reaches_a_gradient(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = random_table(seed, P=6, absent=0.4)
    for part in loss_and_gradient(objective(name, *ways), scores):
        assert part.isfinite().all()
    for unscored in (scores.rewards.isnan(), torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) < 0.3):
        half = scores._replace(rewards=scores.rewards.masked_fill(unscored, NAN))
        assert all(part.isfinite().all() for part in loss_and_gradient(objective(name, *ways), half))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_the_order_of_responses_does_not_matter(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = random_table(seed, absent=0.2)
    shuffled, order = permuted(scores, seed)
    *ours, gradient = loss_and_gradient(objective(name, *ways), shuffled)
    *theirs, their_gradient = loss_and_gradient(objective(name, *ways), scores)
    assert_close(ours, theirs)
    assert_close(gradient, their_gradient.gather(1, order))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_the_numbering_of_sources_does_not_matter(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = random_table(seed, sources=4, absent=0.2)
    renumbered = scores._replace(source=torch.tensor([0, 9, 2, 5, -1])[scores.source])  # 0 stays: it is WRPO's target
    assert_close(
        loss_and_gradient(objective(name, *ways), renumbered), loss_and_gradient(objective(name, *ways), scores)
    )


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_a_table_cut_down_to_the_selected_gives_the_same(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = some_equal(random_table(seed, absent=0.2))
    chosen = objective(name, *ways)
    selected = chosen.select(scores)
    assert not (selected & ~scores.valid).any()
    assert_close(loss_and_gradient(chosen, hide(scores, ~selected)), loss_and_gradient(chosen, scores))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_a_prompt_alone_is_a_prompt_in_a_batch(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = random_table(seed, absent=0.2)
    alone = [loss_and_gradient(objective(name, *ways), GroupScores(*(c[p : p + 1] for c in scores))) for p in range(4)]
    together = loss_and_gradient(objective(name, *ways), scores)
    assert_close([torch.cat(parts) for parts in zip(*alone, strict=True)], together)


@pytest.mark.parametrize(("name", "ways"), ALL)
def test_only_selected_responses_have_a_gradient_and_all_of_them_do(name: str, ways: tuple[str, ...]) -> None:
    scores = some_equal(random_table(5, P=8))
    chosen = objective(name, *ways)
    moved = loss_and_gradient(chosen, scores)[-1] != 0
    if "objective.masked=keep" in ways or "objective.clip=0.2" in ways:
        # `keep` holds the best of a source without a pair in the table, unmoved; a clipped response rests too.
        assert not (moved & ~chosen.select(scores)).any()
    else:
        assert torch.equal(moved, chosen.select(scores))


@pytest.mark.parametrize(("name", "ways"), ALL)
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_denominators_depend_on_data_alone(name: str, ways: tuple[str, ...], seed: int) -> None:
    scores = random_table(seed, absent=0.2)
    blank = scores._replace(
        policy_logps=torch.zeros_like(scores.policy_logps), reference_logps=torch.zeros_like(scores.policy_logps)
    )
    chosen = objective(name, *ways)
    ours, theirs = chosen.loss(scores, progress=0.7), chosen.loss(blank, progress=0.0)
    assert_close([ours.count, ours.weight], [theirs.count, theirs.weight], rtol=0, atol=0)
    assert torch.equal(ours.count > 0, ours.weight > 0), "a prompt counts if and only if it pulls"
    assert (ours.weight <= 1 + 1e-12).all()


@pytest.mark.parametrize(("name", "ways"), ALL)
def test_gradients_are_those_of_the_value(name: str, ways: tuple[str, ...]) -> None:
    scores = random_table(11, P=2, K=6)
    if "kl=0" not in " ".join(ways) and name == "fusepo_rloo":
        ways = (*ways, "objective.kl=0")  # its KL bracket is held constant, which differences would not do

    def total(policy: torch.Tensor) -> torch.Tensor:
        return objective(name, *ways).loss(scores._replace(policy_logps=policy), progress=0.5).sum

    assert torch.autograd.gradcheck(total, scores.policy_logps.clone().requires_grad_())


@pytest.mark.parametrize("name", DPO_FAMILY)
@pytest.mark.parametrize("setting", ["masked=keep", "masked=renormalise", "label_smoothing=0.2"])
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_the_loss_over_its_weight_starts_at_ln_2(name: str, setting: str, seed: int) -> None:
    if setting.startswith("masked") and name == "wrpo":
        setting = "form=average"  # one triple a prompt has no other weight to keep
    scores = some_equal(random_table(seed, absent=0.2))
    untrained = scores._replace(policy_logps=scores.reference_logps)
    totals = objective(name, f"objective.{setting}").loss(untrained, progress=0.0)
    there = totals.weight > 0
    assert_close(totals.sum[there] / totals.weight[there], torch.full_like(totals.sum[there], math.log(2)))


@pytest.mark.parametrize("name", FUSED)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_tau_to_zero_is_the_best_alone_and_tau_to_infinity_uniform(name: str, seed: int) -> None:
    scores = random_table(seed)
    for tau, limit in (("1e-9", "best"), ("1e9", "uniform")):
        ours = loss_and_gradient(objective(name, f"weights.tau={tau}"), scores)
        assert_close(ours, loss_and_gradient(objective(name, f"weights={limit}"), scores), rtol=1e-6, atol=1e-6)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_sparse_methods_are_limits_of_the_fused_ones(seed: int) -> None:
    scores = random_table(seed, sources=2)
    in_owner = objective("dpo_best").pairs(scores).valid.any(dim=1)
    ours = loss_and_gradient(objective("fusepo_dpo", "weights=best"), scores)
    best = loss_and_gradient(objective("dpo_best"), scores)
    assert_close([part[in_owner] for part in ours], [part[in_owner] for part in best])
    top_one = loss_and_gradient(objective("fusesft", "objective.size=1"), scores)
    assert_close(top_one, loss_and_gradient(objective("sft_best"), scores))
    assert_close(loss_and_gradient(objective("fusesft", "weights=best"), scores), top_one)


def ten_line_dpo(policy_w, policy_l, ref_w, ref_l, *, beta):
    """Ordinary DPO of one pair."""
    return -F.logsigmoid(beta * ((policy_w - ref_w) - (policy_l - ref_l)))


def ten_line_simpo(policy_w, policy_l, tokens_w, tokens_l, *, beta, ratio):
    """Ordinary SimPO of one pair."""
    return -F.logsigmoid(beta * (policy_w / tokens_w - policy_l / tokens_l - ratio))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "given"])
@pytest.mark.parametrize("name", ["dpo_best", "fusepo_dpo", "fusepo_simpo"])
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_one_source_with_two_responses_is_the_ordinary_loss_to_the_last_bit(name: str, rule: str, seed: int) -> None:
    scores = random_table(seed, K=2, sources=1)
    best = scores.rewards.argmax(dim=1, keepdim=True)
    policy = scores.policy_logps.clone().requires_grad_()
    (pw, rw, tw), (pl, rl, tl) = (
        [column.gather(1, side)[:, 0] for column in (policy, scores.reference_logps, scores.num_tokens)]
        for side in (best, 1 - best)
    )
    if name == "fusepo_simpo":
        expected = ten_line_simpo(pw, pl, tw, tl, beta=10.0, ratio=0.1)
    else:
        expected = ten_line_dpo(pw, pl, rw, rl, beta=0.01)
    (gradient,) = torch.autograd.grad(expected.sum(), policy)
    ours = loss_and_gradient(objective(name, f"weights={rule}"), scores)
    assert torch.equal(ours[0], expected.detach())
    assert torch.equal(ours[3], gradient)
    assert torch.equal(ours[1], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("kl", [0, 0.1])
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_rloo_agrees_with_a_plain_reference_in_value_and_gradient(kl: float, clip: float | None, seed: int) -> None:
    scores = random_table(seed, P=3, K=9)
    policy = scores.policy_logps.clone().requires_grad_()
    expected = []
    for prompt in range(3):
        log_ratio = policy[prompt] - scores.reference_logps[prompt]
        rewards, source = scores.rewards[prompt], scores.source[prompt].tolist()
        penalised = (rewards - kl * log_ratio.detach()).tolist()
        groups = [[i for i in range(9) if source[i] == k] for k in sorted(set(source))]
        groups = [group for group in groups if len(group) > 1]
        best = [math.exp(rewards[group].max().item() / 0.3) for group in groups]
        loss = policy.sum() * 0
        for group, weight in zip(groups, best, strict=True):
            total = sum(penalised[i] for i in group)
            for i in group:
                advantage = penalised[i] - (total - penalised[i]) / (len(group) - 1)
                ratio = log_ratio[i].exp()
                gain = advantage * policy[prompt, i]
                if clip is not None:
                    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
                loss = loss - weight / sum(best) / len(group) * gain
        expected.append(loss)
    (gradient,) = torch.autograd.grad(torch.stack(expected).sum(), policy)
    setting = "null" if clip is None else clip
    ours = loss_and_gradient(objective("fusepo_rloo", f"objective.kl={kl}", f"objective.clip={setting}"), scores)
    assert_close([ours[0], ours[3]], [torch.stack(expected).detach(), gradient], rtol=1e-10, atol=1e-12)


def smoothed(margin: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The expected loss when the labels are wrong with this probability."""
    return (1 - smoothing) * torch.log1p(torch.exp(-margin)) + smoothing * torch.log1p(torch.exp(margin))


@pytest.mark.parametrize("name", ["dpo_best", "fusepo_dpo", "fusepo_simpo", "wrpo", "wrpo_simpo"])
@given(seed=SEEDS, smoothing=st.floats(0, 0.49))
@settings(max_examples=10, deadline=None)
def test_label_smoothing_expects_wrong_labels(name: str, seed: int, smoothing: float) -> None:
    scores = random_table(seed, K=2, sources=1)
    best = scores.rewards.argmax(dim=1, keepdim=True)
    sides = torch.cat([best, 1 - best], dim=1)
    beta = {"dpo_best": 0.01, "fusepo_dpo": 0.01, "fusepo_simpo": 10.0, "wrpo": 0.01, "wrpo_simpo": 10.0}[name]
    per_token = name.endswith("simpo")
    reward = scores.policy_logps / scores.num_tokens if per_token else scores.policy_logps - scores.reference_logps
    chosen, rejected = reward.gather(1, sides).T
    margin = beta * (chosen - rejected - (0.1 if per_token else 0))
    ways = [f"objective.label_smoothing={smoothing}", f"objective.beta={beta}"]
    ways += ["objective.gamma_beta_ratio=0.1"] if per_token else []
    if name.startswith("wrpo"):  # the source's response stands in a third column, which alpha = 0 ignores
        ways.append("objective.alpha=0")
        scores = GroupScores(*(torch.cat([column, column[:, :1]], dim=1) for column in scores))
        scores = scores._replace(source=torch.tensor([0, 0, 1]).expand(4, 3))
    ours = objective(name, *ways).loss(scores, progress=0.5).sum
    assert_close(ours, smoothed(margin, smoothing), rtol=1e-9, atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_sft_on_one_response_is_cross_entropy(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 11, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 11, (5,), generator=random)
    logps = logits.log_softmax(dim=1).gather(1, labels[:, None]).sum()
    scores = hand_table([[NAN]], [[0]], policy_logps=[[logps.item()]], num_tokens=[[5]])
    for name, ways in (("sft_best", ()), ("fusesft", ("weights=uniform",))):
        totals = objective(name, *ways).loss(scores, progress=0.0)
        assert_close(totals.sum.sum() / totals.count.sum(), F.cross_entropy(logits, labels))


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_shifting_policy_and_reference_alike_changes_no_dpo(seed: int) -> None:
    scores = random_table(seed)
    shifted = scores._replace(policy_logps=scores.policy_logps - 3, reference_logps=scores.reference_logps - 3)
    for name in (*DPO_FAMILY, "wrpo_ipo"):
        assert_close(loss_and_gradient(objective(name), shifted), loss_and_gradient(objective(name), scores))


@given(seed=SEEDS, shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_rewards_matter_through_their_differences_and_tau(seed: int, shift: float, scale: float) -> None:
    scores = random_table(seed)
    moved = scores._replace(rewards=scores.rewards * scale + shift)
    for name in ("fusesft", "fusepo_dpo", "fusepo_simpo"):
        ours = loss_and_gradient(objective(name, f"weights.tau={0.3 * scale}"), moved)
        assert_close(ours, loss_and_gradient(objective(name), scores), rtol=1e-6, atol=1e-8)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_wrpo_without_the_source_is_dpo_on_the_target(seed: int) -> None:
    scores = random_table(seed, K=8, sources=2)
    own = hide(scores, scores.source != 0)
    here = objective("wrpo").pairs(scores).valid.any(dim=1)
    ours = objective("wrpo").loss(scores, progress=0.0).sum
    assert_close(ours[here], objective("dpo_best").loss(own, progress=0.0).sum[here])

"""Laws of the plan: every prompt once an epoch, packs within bounds, a pure function of seed, epoch, step."""

from __future__ import annotations

import timeit

import kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.tokens.collate import collate
from fuserl.tokens.plan import GroupCosts, chosen_at, first_fit, make_plan


def costs(tokens: list[int]) -> GroupCosts:
    return GroupCosts(np.arange(len(tokens)) * 2, np.array(tokens), [f"g{i}" for i in range(len(tokens))])


SIZES = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(1, 3), st.integers(0, 5), st.integers(1, 3))
def test_laws(tokens, batch_size, ranks, seed, epochs):
    plan = make_plan(costs(tokens), batch_size=batch_size, max_tokens=100, ranks=ranks, seed=seed, epochs=epochs)
    per_epoch = -(-len(tokens) // batch_size)
    assert plan.steps == epochs * per_epoch
    for epoch in range(epochs):
        seen = [row for i in range(per_epoch) for row in plan.step(epoch * per_epoch + i).prompts]
        assert sorted(seen) == sorted(plan.rows.tolist())
    for number in range(plan.steps):
        step = plan.step(number)
        assert len(step.packs) == ranks
        assert {len(packs) for packs in step.packs} == {plan.packs_per_step}
        packed = [row for packs in step.packs for pack in packs for row in pack.groups]
        assert sorted(packed) == sorted(step.prompts)
        for packs in step.packs:
            for pack in packs:
                assert sum(tokens[row // 2] for row in pack.groups) <= 100


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(0, 5))
def test_ranks_and_pack_sizes_do_not_change_the_steps(tokens, batch_size, seed):
    one, two = (
        make_plan(costs(tokens), batch_size=batch_size, max_tokens=size, ranks=ranks, seed=seed, epochs=2)
        for size, ranks in ((100, 1), (10_000, 2))
    )
    assert [one.step(i).prompts for i in range(one.steps)] == [two.step(i).prompts for i in range(two.steps)]


def test_the_seed_orders_and_epochs_differ():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return (
            make_plan(costs([1] * 50), batch_size=50, max_tokens=100, ranks=1, seed=seed, epochs=2).step(epoch).prompts
        )

    assert order(0, 0) == order(0, 0)
    assert len({order(0, 0), order(0, 1), order(1, 0)}) == 3


def test_a_group_larger_than_a_pack_is_named():
    with pytest.raises(FuserlError, match="one group alone has 101 tokens") as caught:
        make_plan(costs([5, 101]), batch_size=1, max_tokens=100, ranks=1, seed=0, epochs=1)
    assert "g1" in caught.value.where


def test_a_hundred_thousand_prompts_are_planned_at_once():
    tokens = np.random.default_rng(0).integers(100, 2000, 100_000).tolist()
    plan = make_plan(costs(tokens), batch_size=128, max_tokens=16384, ranks=8, seed=0, epochs=1)
    assert plan.steps == 782


def naive_first_fit(tokens: np.ndarray, max_tokens: int) -> list[list[int]]:
    """By definition: largest first, each into the first bin with room."""
    bins: list[list[int]] = []
    for index in np.argsort(-tokens, kind="stable").tolist():
        fits = (members for members in bins if tokens[members].sum() + tokens[index] <= max_tokens)
        members = next(fits, None)
        if members is None:
            bins.append(members := [])
        members.append(index)
    return bins


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=60))
def test_first_fit_is_what_its_name_says(sizes):
    tokens = np.array(sizes, dtype=np.int64)
    assert first_fit(tokens, 50) == naive_first_fit(tokens, 50)


def seconds_to_fill(num_groups: int) -> float:
    tokens = np.random.default_rng(0).integers(1500, 6000, num_groups)
    return min(timeit.repeat(lambda: first_fit(tokens, 16384), number=1, repeat=3))


def test_many_bins_are_filled_in_near_linear_time():
    assert seconds_to_fill(40_000) < 9 * seconds_to_fill(10_000), "the naive way takes 16 times as long"


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(1, 30))
def test_packs_a_step_are_those_of_the_fullest_step(tokens, batch_size, ranks, seed, shuffle, max_steps):
    plan = make_plan(
        costs(tokens), batch_size=batch_size, max_tokens=100, ranks=ranks, seed=seed, epochs=1, max_steps=max_steps,
        shuffle=shuffle,
    )  # fmt: skip
    each = [len(naive_first_fit(plan.costs.tokens[chosen_at(plan, number)], 100)) for number in range(plan.steps)]
    assert plan.packs_per_step == -(-max(each) // ranks)


def test_a_plan_of_nothing_says_so():
    with pytest.raises(FuserlError, match="no prompt to plan for"):
        make_plan(costs([]), batch_size=1, max_tokens=9, ranks=1, seed=0, epochs=1)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(FuserlError, match="`max_steps` must be at least 1"):
        make_plan(costs([1, 1]), batch_size=1, max_tokens=9, ranks=1, seed=0, epochs=1, max_steps=steps)


def test_a_pack_spells_every_prompt_with_every_response(tmp_path):
    """The slow way: read each sequence back out of the flat stream."""
    store = kit.token_store(tmp_path, kit.random_groups(4, 2, 3))
    used = np.array(store.valid)
    used[1, 2:4] = False
    batch = collate(store, [2, 1], used)
    for number, row in enumerate((2, 1)):
        for column in range(6):
            unique = int(batch.row[number, column])
            assert (unique >= 0) == bool(used[row, column])
            if unique < 0:
                continue
            mine = batch.owner == unique
            assert batch.labels[mine].tolist() == store.branch(row, column).tolist()
            before = batch.predict[mine]
            prompt = store.prompt(row).tolist()
            assert batch.position_ids[before].tolist() == list(
                range(len(prompt) - 1, len(prompt) - 1 + int(mine.sum()))
            )
            first = int(before[0])
            assert batch.branch[first] == 0
            assert batch.input_ids[first - len(prompt) + 1 : first + 1].tolist() == prompt
            assert batch.num_tokens[number, column] == len(store.branch(row, column))


def test_an_empty_pack_has_nothing_valid(tmp_path):
    store = kit.token_store(tmp_path, kit.random_groups(2))
    batch = collate(store, [0], np.zeros_like(store.valid))
    assert not batch.valid.any()
    assert len(batch.labels) == 0

"""The flat stream against a slow reading of it, with copies, untrained tokens, subsets and truncation; what fits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import real_tokenizers as real
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.tokens.plan import GroupCosts, first_fit, first_of_kind, fitting, make_plan, pack
from fuserl.tokens.store import TokenStore, TokenWriter


def store_of(folder: Path, seed: int, groups: int = 4, responses: int = 5) -> TokenStore:
    """Ragged groups; few distinct short branches, so that copies abound."""
    rng = np.random.default_rng(seed)
    writer = TokenWriter(folder / f"store-{seed}", ["s"])
    for number in range(groups):
        texts = [str(n) for n in range(rng.integers(1, responses + 1))]
        branches = [rng.integers(1, 3, rng.integers(3, 5)) for _ in texts]
        untrained = [int(n) for n in rng.integers(0, 3, len(texts))]
        group = real.group(f"{number}", *texts)
        writer.add(
            type(group)(f"p{number}", group.prompt, group.responses), rng.integers(5, 50, 4), branches, untrained
        )
    return writer.close()


def sequences(batch: GroupBatch) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Unique response -> (tokens of prompt and branch, positions, (index of the first trained token, trained labels)).

    Reads the stream token by token, as one would by eye.
    """
    found = {}
    stream = list(
        zip(*(getattr(batch, name).tolist() for name in ("input_ids", "position_ids", "group", "branch")), strict=True)
    )
    unique = 0
    for group in sorted({row[2] for row in stream}):
        mine = [row for row in stream if row[2] == group]
        prompt = [row for row in mine if row[3] == 0]
        for branch in sorted({row[3] for row in mine} - {0}):
            whole = prompt + [row for row in mine if row[3] == branch]
            labels = [
                label
                for label, owner in zip(batch.labels.tolist(), batch.owner.tolist(), strict=True)
                if owner == unique
            ]
            found[unique] = ([row[0] for row in whole], [row[1] for row in whole], labels)
            unique += 1
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_every_sequence_can_be_read_back(seed, data):
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), seed)
        rng = np.random.default_rng(seed)
        used = rng.random(store.valid.shape) < 0.7
        rows = data.draw(st.permutations(range(4)).map(lambda order: order[: 1 + seed % 4]))
        truncate = data.draw(st.sampled_from([None, 7]))
        batch = collate(store, rows, used, truncate=truncate)
        check(store, rows, used, batch, truncate)


def check(store: TokenStore, rows: list[int], used: np.ndarray, batch: GroupBatch, truncate: int | None) -> None:
    """Each used response, and nothing else, is in the stream once, at its positions, with its own labels."""
    wholes = sequences(batch)
    seen: dict[int, tuple[int, tuple[int, ...], int]] = {}
    for number, row in enumerate(rows):
        prompt = store.prompt(row).tolist()
        for column in range(batch.row.shape[1]):
            unique = int(batch.row[number, column])
            wanted = bool(used[row, column] and store.valid[row, column])
            assert bool(batch.valid[number, column]) == (unique >= 0) == wanted
            if not wanted:
                continue
            lead = int(store.untrained[row, column])
            branch = store.branch(row, column).tolist()[: None if truncate is None else truncate - len(prompt)]
            tokens, positions, labels = wholes[unique]
            assert tokens == prompt + branch
            assert positions == list(range(len(tokens)))
            assert labels == branch[lead:]
            assert int(batch.num_tokens[number, column]) == len(labels)
            assert seen.setdefault(unique, (row, tuple(store.branch(row, column).tolist()), lead)) == (
                row,
                tuple(store.branch(row, column).tolist()),
                lead,
            )
    assert len(seen) == len(wholes) == len(set(seen.values())), "unique rows are neither lost nor doubled"
    check_predictions(batch)


def check_predictions(batch: GroupBatch) -> None:
    """A label is the token after the predicting one: same branch, or the first of its branch after the prompt's last."""
    owners = {}
    for at, label, owner in zip(batch.predict.tolist(), batch.labels.tolist(), batch.owner.tolist(), strict=True):
        group, position = int(batch.group[at]), int(batch.position_ids[at])
        nexts = [
            i
            for i in torch.nonzero((batch.group == group) & (batch.position_ids == position + 1)).flatten().tolist()
            if batch.branch[i] > 0 and batch.branch[at] in (0, batch.branch[i])
        ]
        assert label in [int(batch.input_ids[i]) for i in nexts]
        if batch.branch[at] > 0:
            assert owners.setdefault(owner, (group, int(batch.branch[at]))) == (group, int(batch.branch[at]))
    assert len(set(owners.values())) == len(owners)


def test_costs_are_what_collate_lays_down(tmp_path):
    for seed in range(20):
        store = store_of(tmp_path, seed)
        used = np.random.default_rng(seed).random(store.valid.shape) < 0.6
        for truncate in (None, 7):
            costs = GroupCosts.of(store, used, np.array([2, 0, 3]), truncate)
            lengths = [len(collate(store, [row], used, truncate=truncate).input_ids) for row in (2, 0, 3)]
            assert costs.tokens.tolist() == lengths
            assert list(costs.ids) == ["p2", "p0", "p3"]


def test_a_copy_stands_in_when_the_first_of_its_kind_is_not_used(tmp_path):
    writer = TokenWriter(tmp_path / "x", ["s"])
    same = np.array([7, 8])
    writer.add(real.group("q", "a", "b", "a"), np.array([5]), [same, np.array([9]), same], [0, 0, 0])
    store = writer.close()
    used = np.array([[False, True, True]])
    assert first_of_kind(store, used, np.array([0])).tolist() == [[False, True, True]]
    batch = collate(store, [0], used)
    assert batch.row.tolist() == [[-1, 0, 1]]
    assert batch.input_ids.tolist() == [5, 9, 7, 8]
    both = collate(store, [0], np.ones((1, 3), dtype=bool))
    assert both.row.tolist() == [[0, 1, 0]]
    assert both.predict.tolist() == [0, 1, 0]


def test_the_table_keeps_its_numbers(tmp_path):
    store = store_of(tmp_path, 3)
    reference = np.random.default_rng(0).normal(size=store.valid.shape)
    batch = collate(store, [3, 1], np.array(store.valid), reference=reference, count_in_step=17.5, progress=0.25)
    width = batch.row.shape[1]
    assert width == int(np.asarray(store.valid)[[3, 1]].sum(axis=1).max())
    np.testing.assert_array_equal(batch.reference_logps, reference[[3, 1], :width])
    np.testing.assert_array_equal(batch.rewards, np.asarray(store.rewards)[[3, 1], :width])
    assert batch.index.tolist() == [3, 1]
    assert (batch.count_in_step.item(), batch.progress.item()) == (17.5, 0.25)
    assert int(batch.source.min()) >= 0


def test_a_cut_response_has_no_end_of_turn(tmp_path):
    writer = TokenWriter(tmp_path / "x", ["s"])
    writer.add(real.group("q", "a", "b"), np.array([5, 6]), [np.array([7, 8, 9, 2]), np.array([7, 2])], [0, 0])
    batch = collate(writer.close(), [0], np.ones((1, 2), dtype=bool), truncate=5)
    assert batch.labels.tolist() == [7, 8, 9, 7, 2]
    assert batch.num_tokens.tolist() == [[3, 2]]


def test_what_fits(tmp_path):
    writer = TokenWriter(tmp_path / "x", ["s"])
    for number, sizes in enumerate(((3, 3), (3, 9), (9, 3))):
        group = real.group("q", "a", "b")
        writer.add(
            type(group)(f"p{number}", group.prompt, group.responses),
            np.arange(4 if number < 2 else 10),
            [np.arange(size) for size in sizes],
            [0, 0],
        )
    store = writer.close()
    everything, first_only = np.ones((3, 2), dtype=bool), np.array([[True, False]] * 3)
    assert fitting(store, everything, max_length=7, on_too_long="drop").keep.tolist() == [0]
    assert fitting(store, everything, max_length=7, on_too_long="drop").dropped == [
        ("p1", "longer than 7 tokens"),
        ("p2", "longer than 7 tokens"),
    ]
    assert fitting(store, first_only, max_length=7, on_too_long="drop").keep.tolist() == [0, 1], (
        "only used responses count"
    )
    assert fitting(store, everything, max_length=7, on_too_long="truncate_response").keep.tolist() == [0, 1]
    assert fitting(store, everything, max_length=100, on_too_long="error").keep.tolist() == [0, 1, 2]
    with pytest.raises(FuserlError, match="2 groups are longer than 7 tokens, the first has 13") as caught:
        fitting(store, everything, max_length=7, on_too_long="error")
    assert "p1" in caught.value.where
    writer = TokenWriter(tmp_path / "y", ["s"])
    writer.add(real.group("q", "a", "b"), np.arange(5), [np.arange(5), np.arange(7)], [0, 4])
    unused = fitting(writer.close(), np.array([[True, False]]), max_length=6, on_too_long="truncate_response")
    assert unused.keep.tolist() == [0], "what an unused response does not train does not count"
    with pytest.raises(FuserlError, match="no way to treat"):
        fitting(store, everything, max_length=7, on_too_long="cut")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_bins_hold_everything_once_within_their_size(sizes, extra):
    tokens = np.array(sizes, dtype=np.int64)
    bins = first_fit(tokens, 50)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    assert all(tokens[members].sum() <= 50 for members in bins)
    spread = pack(tokens, len(bins) + extra, 50)
    assert len(spread) == len(bins) + extra
    assert sorted(index for members in spread for index in members) == list(range(len(sizes)))
    assert all(tokens[members].sum() <= 50 for members in spread)


def test_ranks_are_balanced():
    tokens = np.random.default_rng(0).integers(50, 400, 256)
    plan = make_plan(
        GroupCosts(np.arange(256), tokens, [str(i) for i in range(256)]),
        batch_size=64, max_tokens=4096, ranks=4, seed=0, epochs=1,
    )  # fmt: skip
    for number in range(plan.steps):
        loads = [sum(int(tokens[list(p.groups)].sum()) for p in packs) for packs in plan.step(number).packs]
        assert max(loads) < 1.1 * min(loads)


def test_steps_may_be_asked_in_any_order_and_beyond_an_epoch():
    def made():
        return make_plan(
            GroupCosts(np.arange(10), np.ones(10, dtype=int), list("abcdefghij")),
            batch_size=4, max_tokens=3, ranks=2, seed=7, epochs=1, max_steps=8,
        )  # fmt: skip

    forward = made()
    steps = [forward.step(number) for number in range(8)]
    backward = made()
    assert [backward.step(number) for number in reversed(range(8))] == steps[::-1]
    assert [len(step.prompts) for step in steps] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert sorted(sum((step.prompts for step in steps[3:6]), ())) == list(range(10))
    assert {len(packs) for step in steps for packs in step.packs} == {forward.packs_per_step}

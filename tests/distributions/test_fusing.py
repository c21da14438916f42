"""Distributions along an alignment and the choice between models: sums, order, ties, temperature, mistakes."""

from __future__ import annotations

import math

import literal
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.distributions import blend, mapping, topk
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError

OWN = TopK(np.array([[3, 4]]), np.log([[0.9, 0.1]]))


def one_row(probs: list[float], ids: list[int], **settings) -> dict[int, float]:
    """A single copied position."""
    steps = TopK(np.array([ids]), np.log([probs]))
    there = np.array([0, 1, 1, -1], dtype=np.int32)
    found = mapping.map_rows(steps, np.array([0]), there, np.array([-1]), OWN, **({"combine": topk.largest} | settings))
    return {int(t): float(p) for t, p in zip(found.ids[0], found.probs[0], strict=True) if t >= 0}


def test_two_entries_that_become_one_token():
    assert one_row([0.5, 0.2, 0.1], [0, 1, 2]) == pytest.approx({0: 5 / 7, 1: 2 / 7})  # the first stays, as published
    assert one_row([0.5, 0.2, 0.1], [0, 1, 2], combine=topk.added) == pytest.approx({0: 5 / 8, 1: 3 / 8})


def test_entries_without_a_token_of_the_target_are_left_out_before_the_softmax():
    """Trap 25 (MaxText 4056): what is kept is normalised once, after the mapping."""
    assert one_row([0.5, 0.2, 0.25], [0, 1, 3]) == pytest.approx({0: 5 / 7, 1: 2 / 7})
    assert one_row([0.5], [3]) == pytest.approx({3: 0.9, 4: 0.1})  # nothing is left: the target's own


def test_the_temperature_is_used():
    """FuseChat's released distribution step takes one and never reads it."""
    warm = one_row([0.64, 0.16], [0, 1], temperature=2.0)
    assert warm == pytest.approx({0: 2 / 3, 1: 1 / 3})
    with pytest.raises(FuserlError, match="temperature must be above 0"):
        one_row([0.5], [0], temperature=0.0)


def test_ids_are_asked_and_not_positions():
    """FuseChat's released test of equality indexes the map with a position."""
    g = np.array([7, 8, 9, 5], dtype=np.int32)
    same = mapping.same_text_or_mapped(["x"] * 4, ["y"] * 10, g)
    alignment = Alignment(np.array([0, 1], np.int32), np.array([0, 1], np.int32), 2)
    assert mapping.choose_equal(alignment, [3, 2], [5, 7], same).tolist() == [0, mapping.GOLD]


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.text("ab", max_size=4))
def test_spelling_chooses_as_the_literal_rule(source, text):
    alignment = Alignment(np.zeros(1, np.int32), np.array([len(source) - 1], np.int32), len(source))
    found = mapping.choose_spelled(alignment, range(len(source)), [0], source, [text])[0]
    ids = list(range(len(source)))
    wanted = literal._choose("statistics", 0, ids, ids, [0], None, (source, [text]), None)
    assert found == {"gold": mapping.GOLD, "own": mapping.OWN}.get(wanted, wanted)


def test_spelling_by_hand():
    def choose(source, text):
        alignment = Alignment(np.zeros(1, np.int32), np.array([len(source) - 1], np.int32), len(source))
        return mapping.choose_spelled(alignment, range(len(source)), [0], source, [text])[0]

    assert choose([" the"], "the") == 0
    assert choose(["Ex", "amp", "l"], "Exampl") == 2  # spelled: the last one
    assert choose(["Ex", "ample"], "Example") == 1  # a suffix
    assert choose(["Ex", "amp"], "Example") == mapping.OWN  # begun, not finished
    assert choose(["x", "y"], "Example") == mapping.GOLD
    assert choose(["x"], "Example") == mapping.GOLD


@given(st.integers(0, 10**6))
def test_every_row_sums_to_one(seed):
    rng = np.random.default_rng(seed)
    rows, k, width = 6, int(rng.integers(1, 5)), 8
    ids = np.stack([rng.permutation(width)[:k] for _ in range(rows)])
    steps = TopK(ids, -np.sort(rng.exponential(2, (rows, k)), axis=1))
    own = TopK(rng.integers(0, width, (5, 2)), rng.normal(size=(5, 2)))
    own = topk.merged(own.ids, own.probs, topk.added)
    there = rng.integers(-1, width, width).astype(np.int32)
    chosen = rng.integers(-2, rows, 5)
    combine = [topk.largest, topk.added][int(rng.integers(2))]
    found = mapping.map_rows(steps, chosen, there, rng.integers(-1, width, 5), own, combine=combine, temperature=0.7)
    assert found.probs.sum(axis=1) == pytest.approx(1.0)
    for row in found.ids:
        kept = row[row >= 0].tolist()
        assert len(kept) == len(set(kept))


def test_the_model_that_reads_best_is_taken_and_the_target_wins_ties():
    assert blend.min_ce([2.0, 1.0, 1.5]) == literal.min_ce([2.0, 1.0, 1.5]) == 1
    assert blend.min_ce([1.0, 1.0]) == 0
    assert blend.min_ce([1.0, 0.9998]) == 1
    assert blend.min_ce([1.0, 0.9998], blend.closeness_bf16) == 0  # rounded, they tie
    assert blend.pairwise(1.0, [0.9, 1.0, 1.1]) == [True, False, False]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=5))
def test_the_best_source_and_then_the_pair_is_the_best_of_all(ces):
    """`OpenChat Multi` picks a source first; that is MinCE over all with the target in front."""
    target, sources = ces[0], ces[1:]
    if sources:
        best = blend.min_ce(sources)
        wanted = 1 + best if blend.pairwise(target, [sources[best]])[0] else 0
        assert blend.min_ce(ces) == wanted


def test_nats_a_token_and_bits_a_byte_choose_differently():
    """The same text: 10 long tokens of 3 nats against 20 short ones of 2."""
    assert blend.min_ce([30 / 10, 40 / 20]) == 1
    assert blend.min_ce([blend.bits_per_byte(30, 50), blend.bits_per_byte(40, 50)]) == 0


def test_mean_weights_stay_near_uniform():
    """papers.md 4.1: the softmax acts on exp(-CE)."""
    weights = blend.avg_ce_weights([0.1, 9.0, 3.0])
    assert sum(weights) == pytest.approx(1)
    assert max(weights) / min(weights) < math.e
    with np.errstate(divide="ignore"):
        one, other = (TopK(np.array([[0, 1]]), np.log([probs])) for probs in ([1.0, 0.0], [0.0, 1.0]))
    assert blend.fuse_avg_ce([1.0, 1.0], [one, other]).probs[0].max() == pytest.approx(0.5)
    assert blend.fuse_min_ce([1.0, 0.5], [one, other]) is other


def test_a_packed_row_has_the_average_of_its_tokens():
    assert blend.packed([1.0, 4.0], [3, 1]) == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: blend.min_ce([]), "no model"),
        (lambda: blend.min_ce([1.0, math.nan]), "model 1 is nan"),
        (lambda: blend.bits_per_byte(1.0, 0), "empty text"),
        (lambda: blend.packed([], []), "without tokens"),
        (lambda: blend.fuse_min_ce([1.0], []), "do not belong together"),
        (lambda: TopK(np.zeros((1, 2), dtype=np.int64), np.zeros((2, 2))), "do not belong together"),
        (lambda: mapping.map_rows(OWN, np.array([1]), np.zeros(9, np.int32), np.array([0]), OWN, combine=topk.added), "position 1 of 1"),
        (lambda: mapping.map_rows(OWN, np.array([0]), np.zeros(9, np.int32), np.array([0, 1]), OWN, combine=topk.added), "do not agree"),
        (
            lambda: mapping.map_rows(
                OWN, np.array([mapping.OWN]), np.zeros(9, np.int32), np.array([0]), TopK(np.array([[-1]]), np.array([[-np.inf]])), combine=topk.added
            ),
            "position 0 has no distribution",
        ),
        (lambda: mapping.choose_equal(Alignment(np.zeros(1, np.int32), np.zeros(1, np.int32), 2), [0], [0], lambda a, b: True), "align the same tokens"),
    ],
)  # fmt: skip
def test_mistakes_are_told(call, what):
    with pytest.raises(FuserlError, match=what):
        call()

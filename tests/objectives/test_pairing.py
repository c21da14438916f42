"""Who is set against whom."""

from __future__ import annotations

import pytest
import torch
from objectives.tables import NAN, hand_table, hide

from fuserl.objectives import pairing
from fuserl.objectives.terms import GroupScores, Pairs

REWARDS = [[0.3, 0.9, 0.2, 0.7, 0.7, 0.1]]
SOURCE = [[0, 1, 0, 1, 2, 2]]


def as_sets(pairs: Pairs) -> list[set[tuple[int, int]]]:
    """The valid pairs of every prompt as (chosen, rejected) columns."""
    return [
        {(w, r) for w, r, valid in zip(*parts, strict=True) if valid}
        for parts in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.valid.tolist(), strict=True)
    ]


def test_each_source_gives_its_best_and_worst() -> None:
    assert as_sets(pairing.best_and_worst_of_each_source(hand_table(REWARDS, SOURCE))) == [{(0, 2), (1, 3), (4, 5)}]


def test_the_source_that_owns_the_best_gives_one_pair() -> None:
    assert as_sets(pairing.best_source(hand_table(REWARDS, SOURCE))) == [{(1, 3)}]


def test_across_sources_takes_best_and_worst_of_all() -> None:
    assert as_sets(pairing.across_sources(hand_table(REWARDS, SOURCE))) == [{(1, 5)}]
    single = hand_table([[0.3, 0.9, 0.2]], [[0, 1, 2]])
    assert as_sets(pairing.across_sources(single)) == [{(1, 2)}]
    assert as_sets(pairing.best_and_worst_of_each_source(single)) == [set()]


def test_ties_take_the_first_column_and_equal_rewards_make_no_pair() -> None:
    tied = hand_table([[0.5, 0.9, 0.9, 0.5], [0.5, 0.5, 0.5, 0.5]], [[0, 0, 0, 0]] * 2)
    for find in (pairing.best_and_worst_of_each_source, pairing.best_source, pairing.across_sources):
        assert as_sets(find(tied)) == [{(1, 0)}, set()]
        assert find(tied).weight.sum(dim=1).tolist() == [1.0, 0.0]


def test_unscored_and_absent_responses_stand_in_no_pair() -> None:
    scores = hand_table([[NAN, 0.9, 0.2, 0.1]], [[0, 0, 0, 0]])
    assert as_sets(pairing.best_source(scores)) == [{(1, 3)}]
    assert as_sets(pairing.best_source(hide(scores, torch.tensor([[False, False, False, True]])))) == [{(1, 2)}]
    nothing = hide(scores, torch.ones(1, 4, dtype=torch.bool))
    for find in (pairing.best_and_worst_of_each_source, pairing.best_source, pairing.across_sources):
        assert as_sets(find(nothing)) == [set()]


def test_the_window_of_gaps_includes_its_ends() -> None:
    for dtype in (torch.float32, torch.float64):
        scores = hand_table([[0.15, 0.05], [0.16, 0.05], [0.11, 0.1], [0.109, 0.1]], [[0, 0]] * 4)
        scores = scores._replace(rewards=scores.rewards.float().to(dtype))  # rewards are stored in 32 bits
        found = as_sets(pairing.best_source(scores, min_gap=0.01, max_gap=0.1))
        assert [len(pairs) for pairs in found] == [1, 0, 1, 0]


def test_the_weight_of_a_masked_source_is_given_away_or_kept_out() -> None:
    scores = hand_table([[1.0, 1.0, 0.4, 0.1, 0.4, 0.2]], [[0, 0, 1, 1, 2, 2]])  # source 0 always answers right
    pairs = pairing.best_and_worst_of_each_source(scores)

    def weights(masked: str) -> list[float]:
        def by_reward(values, valid, given):
            return torch.where(valid, values, 0.0) / torch.where(valid, values, 0.0).sum(dim=1, keepdim=True)

        return pairing.weigh(scores, pairs, by_reward, masked=masked).weight[0].tolist()

    assert weights("renormalise") == pytest.approx([0, 0, 0.5, 0, 0.5, 0])
    assert weights("keep") == pytest.approx([0, 0, 0.4 / 1.8, 0, 0.4 / 1.8, 0])


def test_keep_counts_no_source_without_a_score() -> None:
    scores = hand_table([[0.9, 0.1, NAN, NAN]], [[0, 0, 1, 1]])
    pairs = pairing.best_and_worst_of_each_source(scores)
    weighed = pairing.weigh(scores, pairs, lambda v, valid, g: valid / valid.sum(dim=1, keepdim=True), masked="keep")
    assert weighed.weight[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_given_weights_come_from_the_chosen_side() -> None:
    scores = hand_table([[0.9, 0.1, 0.8, 0.2]], [[0, 0, 1, 1]], given=[[3.0, 100.0, 1.0, 100.0]])
    pairs = pairing.best_and_worst_of_each_source(scores)
    weighed = pairing.weigh(scores, pairs, lambda v, valid, given: given / given.sum(), masked="renormalise")
    assert weighed.weight[0].tolist() == [0.75, 0.0, 0.25, 0.0]


def test_rewards_in_32_bits_weigh_a_64_bit_loss_in_64_bits() -> None:
    scores = hand_table(REWARDS, SOURCE)
    scores = GroupScores(*scores)._replace(rewards=scores.rewards.float(), given=scores.given.float())
    pairs = pairing.best_source(scores)
    weighed = pairing.weigh(scores, pairs, lambda v, valid, given: valid.to(v.dtype), masked="renormalise")
    assert weighed.weight.dtype == torch.float64

"""What is kept of a group, by hand; and that training finds in it exactly what was selected."""

from __future__ import annotations

from functools import partial

import pytest
from curation.select_kit import of_rewards, table_of
from hypothesis import example, given
from hypothesis import strategies as st

from fuserl.curation import keep, pairs
from fuserl.curation.keep import Everything, Groups, Pairs, PerSource, Quadruple, Top
from fuserl.curation.pairs import Window
from fuserl.errors import FuserlError
from fuserl.objectives import pairing
from fuserl.objectives.supervised import pooled
from fuserl.objectives.wrpo import triple
from fuserl.records.schema import PromptGroup

WINDOW = {"min_gap": 0.01, "max_gap": 0.1}
ANY = {"chosen": "any", "rejected": "any"}
VERIFIED = {"chosen": "right", "rejected": "wrong"}
OPEN = {"min_gap": None, "max_gap": None}


def po(among: str, **settings) -> Pairs:
    return Pairs(**{"among": among, **ANY, **OPEN, **settings})


def texts(group: PromptGroup, kept: keep.Kept) -> list[tuple[str, str]]:
    """Who is set against whom, as `source sample`."""
    said = [f"{r.source}{r.sample}" for r in group.responses]
    return [(said[pair.chosen], said[pair.rejected]) for pair in kept.pairs]


# Rewards of three samples of sources a and b, verdicts, the protocol, and what comes of it, worked out by hand.
TABLE = [
    # a owns the best, 0.20; its worst is 0.13: a gap of 0.07 lies inside.
    ({"a": [0.20, 0.13, 0.15], "b": [0.19, 0.05, 0.18]}, "", po("best_source", **WINDOW), [("a0", "a1")]),
    # b owns the best; its gap of 0.14 is too far, and nobody else is asked.
    ({"a": [0.18, 0.13, 0.15], "b": [0.19, 0.05, 0.18]}, "", po("best_source", **WINDOW), pairs.TOO_FAR),
    ({"a": [0.18, 0.13, 0.15], "b": [0.19, 0.05, 0.18]}, "", po("per_source", **WINDOW), [("a0", "a1")]),
    ({"a": [0.18, 0.13, 0.15], "b": [0.19, 0.05, 0.18]}, "", po("per_source"), [("a0", "a1"), ("b0", "b1")]),
    ({"a": [0.18, 0.13, 0.15], "b": [0.19, 0.05, 0.18]}, "", po("across_sources"), [("b0", "b1")]),
    ({"a": [0.18, 0.13], "b": [0.19, 0.16]}, "", po("across_sources"), [("b0", "a1")]),
    # 0.005 is below the window, 0.01 on its edge.
    ({"a": [0.200, 0.195]}, "", po("best_source", **WINDOW), pairs.TOO_NEAR),
    ({"a": [0.20, 0.19]}, "", po("best_source", **WINDOW), [("a0", "a1")]),
    # In mathematics: the best right one, 0.17, against the worst wrong one, 0.11; 0.20 is wrong and owns nothing.
    (
        {"a": [0.17, 0.20, 0.11], "b": [0.16, 0.10, 0.12]},
        "rwwrww",
        po("best_source", **VERIFIED, **WINDOW),
        [("a0", "a2")],
    ),
    # The best right one is b's, and b has nothing wrong.
    ({"a": [0.15, 0.20], "b": [0.16, 0.10]}, "rwrr", po("best_source", **VERIFIED), "no response is wrong"),
    ({"a": [0.15, 0.12], "b": [0.16, 0.10]}, "rwrr", po("per_source", **VERIFIED), [("a0", "a1")]),
    # The only wrong one is thought better than the right one.
    ({"a": [0.15, 0.20]}, "rw", po("best_source", **VERIFIED), pairs.NOT_WORSE),
    # Every response fails: as FuseChat-3.0 in code, the prompt goes.
    ({"a": [0.15, 0.20], "b": [0.1, 0.3]}, "wwww", po("best_source", **VERIFIED), "no response is right"),
    ({"a": [0.15, 0.20]}, "u.", po("best_source", **VERIFIED), "no response is right"),
    # Nothing to tell apart.
    ({"a": [0.2, 0.2], "b": [0.1, 0.1]}, "", po("per_source"), pairs.EQUAL),
    ({"a": [None, None]}, "", po("best_source"), pairs.UNSCORED),
    ({"a": [None, 0.2], "b": [0.1, None]}, "", po("per_source"), pairs.EQUAL),
    # Equal rewards: the first is taken.
    ({"a": [0.2, 0.1, 0.2, 0.1]}, "", po("best_source"), [("a0", "a1")]),
    # WRPO: the best over sources, the target's best and worst.
    ({"a": [0.2, 0.3], "t": [0.1, 0.25, 0.05]}, "", Quadruple("t", **OPEN), [("t1", "t2")]),
    ({"a": [0.2, 0.3], "t": [0.1, 0.1]}, "", Quadruple("t", **OPEN), pairs.EQUAL),
    ({"a": [0.2, 0.3]}, "", Quadruple("t", **OPEN), "the target has not answered"),
    ({"a": [None], "t": [0.1, 0.2]}, "", Quadruple("t", **OPEN), "no source has a scored response"),
    ({"a": [0.2, 0.3], "t": [0.1, 0.5]}, "", Quadruple("t", **WINDOW), pairs.TOO_FAR),
]


@pytest.mark.parametrize(("rewards", "verdicts", "protocol", "expected"), TABLE)
def test_pairs_worked_out_by_hand(rewards, verdicts, protocol, expected):
    group = of_rewards(rewards, verdicts)
    kept = protocol(group)
    if isinstance(expected, str):
        assert (kept.why, kept.places, kept.pairs) == (expected, (), ())
    else:
        assert (texts(group, kept), kept.why) == (expected, None)


def test_a_quadruple_keeps_three_responses():
    group = of_rewards({"a": [0.2, 0.3], "b": [0.31], "t": [0.1, 0.25, 0.05]})
    kept = Quadruple("t", **OPEN)(group).of(group)
    assert [(r.source, r.reward) for r in kept.responses] == [("b", 0.31), ("t", 0.25), ("t", 0.05)]


def everywhere(**settings) -> dict:
    return {"verdict": "any", "sources": None, "without": None, **settings}


POOLS = [
    (Top(1, **everywhere()), [0.9]),
    (Top(2, **everywhere()), [0.9, 0.8]),
    (Top(1, **everywhere(verdict="right")), [0.8]),
    (Top(9, **everywhere(verdict="right")), [0.3, 0.8]),
    (Top(1, **everywhere(sources=["a"])), [0.3]),
    (Top(1, **everywhere(without=["b"])), [0.7]),
    (PerSource(**everywhere()), [0.3, 0.9, 0.7, None]),  # an only response has no rival, scored or not
    (PerSource(**everywhere(verdict="right")), [0.3, 0.8]),
    (Everything(**everywhere(verdict="right")), [0.3, 0.8]),
    (Everything(**everywhere()), [0.3, 0.1, 0.9, 0.8, 0.7, None]),
    (Top(1, **everywhere(sources=["d"])), [None]),  # nothing has to be chosen, so nothing need be scored
    (Top(1, **everywhere(sources=["nobody"])), "none of the sources asked for answered"),
    (Top(1, **everywhere(sources=["c"], verdict="right")), "no response is right"),
]


@pytest.mark.parametrize(("protocol", "expected"), POOLS)
def test_pools_worked_out_by_hand(protocol, expected):
    group = of_rewards({"a": [0.3, 0.1], "b": [0.9, 0.8], "c": [0.7], "d": [None]}, "rwwrw.")
    kept = protocol(group)
    found = [group.responses[place].reward for place in kept.places]
    assert (kept.why if isinstance(expected, str) else found) == expected


def test_unscored_samples_among_which_one_must_be_chosen_are_not():
    assert Top(1, **everywhere())(of_rewards({"a": [None, None]})).why == pairs.UNSCORED
    assert PerSource(**everywhere())(of_rewards({"a": [None, None]})).why == pairs.UNSCORED


def test_groups_keep_all_samples_where_some_source_tells_them_apart():
    group = of_rewards({"a": [0.2, 0.2], "b": [0.3, 0.1, None]})
    assert Groups()(group).places == (0, 1, 2, 3)
    assert Groups()(of_rewards({"a": [0.2, 0.2], "b": [0.3, 0.3]})).why == pairs.EQUAL
    assert Groups()(of_rewards({"a": [None]})).why == pairs.UNSCORED


# --- training finds the same ---------------------------------------------------------------------------------------

REWARD = st.one_of(
    st.integers(-40, 40).map(
        lambda n: n / 100
    ),  # gaps that are exactly on the window's edges, or a bit beside in binary
    st.integers(-4000, 4000).map(lambda n: n / 10000),
    st.none(),
)
REWARDS = st.dictionaries(st.sampled_from("abct"), st.lists(REWARD, min_size=1, max_size=4), min_size=1)


def valid_pairs(found: pairing.Pairs) -> set[tuple[int, int]]:
    columns = (part[0].tolist() for part in (found.chosen, found.rejected, found.valid))
    return {(chosen, rejected) for chosen, rejected, valid in zip(*columns, strict=True) if valid}


def as_kept(group: PromptGroup, kept: keep.Kept) -> set[tuple[int, int]]:
    """The selected pairs as columns of what was kept."""
    return {(kept.places.index(pair.chosen), kept.places.index(pair.rejected)) for pair in kept.pairs}


TRAINED = {
    "best_source": partial(pairing.best_source),
    "per_source": pairing.best_and_worst_of_each_source,
    "across_sources": pairing.across_sources,
}


@given(REWARDS, st.sampled_from(sorted(TRAINED)))
def test_training_finds_the_pairs_that_were_selected(rewards, among):
    group = of_rewards(rewards)
    kept = po(among)(group)
    assert set(kept.pairs) == valid_pairs(TRAINED[among](table_of(group)))
    if kept.pairs:
        assert as_kept(group, kept) == valid_pairs(TRAINED[among](table_of(kept.of(group))))


@given(REWARDS, st.sampled_from([(0.01, 0.1), (None, 0.05), (0.02, None), (0.1, 0.1)]))
@example({"a": [0.3, 0.2]}, (0.01, 0.1))
@example({"a": [0.15, 0.05]}, (0.1, 0.1))
@example({"a": [0.02, 0.01]}, (0.01, 0.1))
def test_training_with_the_same_window_finds_the_same_pair(rewards, window):
    group = of_rewards(rewards)
    settings = dict(zip(("min_gap", "max_gap"), window, strict=True))
    kept = po("best_source", **settings)(group)
    assert set(kept.pairs) == valid_pairs(pairing.best_source(table_of(group), **settings))
    if kept.pairs:  # and with no window at all: there is nothing else left to find
        assert as_kept(group, kept) == valid_pairs(pairing.best_source(table_of(kept.of(group))))


@given(REWARDS, st.lists(st.sampled_from("rwu."), min_size=16, max_size=16), st.sampled_from(sorted(TRAINED)))
def test_training_finds_verified_pairs_too(rewards, marks, among):
    group = of_rewards(rewards, "".join(marks[: sum(map(len, rewards.values()))]))
    kept = po(among, **VERIFIED, **WINDOW)(group)
    for pair in kept.pairs:
        chosen, rejected = (group.responses[place] for place in pair)
        assert (chosen.verdict, rejected.verdict) == ("right", "wrong")
        assert 0.01 - 1e-6 <= chosen.reward - rejected.reward <= 0.1 + 1e-6
        assert among == "across_sources" or chosen.source == rejected.source
    if kept.pairs:
        assert as_kept(group, kept) == valid_pairs(TRAINED[among](table_of(kept.of(group))))


@given(REWARDS)
def test_training_finds_the_quadruples_that_were_selected(rewards):
    group = of_rewards(rewards)
    kept = Quadruple("t", **OPEN)(group)
    for one in [group] + ([kept.of(group)] if kept.places else []):
        table = table_of(one, "abct")
        found = triple(table, target=3)
        assert bool(found.valid) == bool(kept.places)
        if kept.places:
            places = [int(part) for part in found[:3]]
            rewards_of = [one.responses[place].reward for place in places]
            chosen, rejected = (group.responses[place].reward for place in kept.pairs[0])
            assert rewards_of[1:] == [chosen, rejected]
            assert {one.responses[place].text for place in places} == {r.text for r in kept.of(group).responses}


@given(REWARDS, st.sampled_from([("top", 1), ("top", 4), ("per_source", 1)]))
def test_training_pools_what_was_selected(rewards, pool):
    group = of_rewards(rewards)
    name, size = pool
    kept = (Top(size, **everywhere()) if name == "top" else PerSource(**everywhere()))(group)
    trained = pooled(table_of(group), pool=name, size=size)[0].nonzero().flatten().tolist()
    assert list(kept.places) == trained
    if trained:
        assert pooled(table_of(kept.of(group)), pool=name, size=size).all()


KEEPS = [
    *(po(among, **sides, **window) for among in TRAINED for sides in (ANY, VERIFIED) for window in (OPEN, WINDOW)),
    *(Top(size, **everywhere(verdict=verdict)) for size in (1, 4) for verdict in ("any", "right")),
    *(PerSource(**everywhere()), Everything(**everywhere()), Groups(), Quadruple("t", **WINDOW)),
]


@given(REWARDS, st.lists(st.sampled_from("rwu."), min_size=16, max_size=16))
def test_what_was_kept_is_kept_again(rewards, marks):
    group = of_rewards(rewards, "".join(marks[: sum(map(len, rewards.values()))]))
    for protocol in KEEPS:
        kept = protocol(group)
        assert bool(kept.places) == (kept.why is None)
        assert list(kept.places) == sorted(set(kept.places))
        assert {place for pair in kept.pairs for place in pair} <= set(kept.places)
        if kept.places:
            again = protocol(kept.of(group))
            assert kept.of(group) == again.of(kept.of(group))
            assert as_kept(group, kept) == set(again.pairs)


def test_two_sides_that_say_the_same_make_no_pair():
    one = of_rewards({"a": [0.2, 0.1]})
    same = PromptGroup(one.id, one.prompt, tuple(type(r)(r.source, "same", r.sample, r.reward) for r in one.responses))
    assert po("best_source")(same).why == pairs.SAME_TEXT


@pytest.mark.parametrize(
    ("high", "low", "inside"),
    [
        (0.3, 0.2, True),
        (0.15, 0.05, True),
        (0.2, 0.19, True),
        (0.16, 0.05, False),
        (0.109, 0.1, False),
        (0.1, 0.1, False),
    ],
)
def test_the_window_has_its_ends_inside_whatever_binary_says(high, low, inside):
    assert (Window(0.01, 0.1).misses(high, low) is None) == inside


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Window(0.2, 0.1),
        lambda: Window(-0.1, None),
        lambda: po("nearest"),
        lambda: po("best_source", chosen="wrong"),
        lambda: po("best_source", rejected="right"),
        lambda: Top(0, **everywhere()),
        lambda: Top(True, **everywhere()),
        lambda: Top(1, **everywhere(verdict="good")),
        lambda: PerSource(**everywhere(sources="a")),
        lambda: Quadruple("t", 1.0, 0.5),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(FuserlError):
        wrong()

"""Pairs written for TRL: which they are, and that they read back as the same pairs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.selection import keep_sources, require_sources, sources_of
from fuserl.records.splits import by_hash
from fuserl.records.trl import pairs_of, write_preferences


def group_of(*answers, name="p"):
    """Answers are (source, text, reward); samples are numbered within a source."""
    seen: dict[str, int] = {}
    responses = []
    for source, text, reward in answers:
        responses.append(Response(source, text, seen.setdefault(source, 0), reward))
        seen[source] += 1
    return PromptGroup(name, (Message("user", f"hi {name}"),), tuple(responses))


CASES = {  # name: (answers, pairs per source, pairs of the best source)
    "best against worst": ([("a", "x", 1), ("a", "y", 3), ("a", "z", 2)], ["yx"], ["yx"]),
    "each source its own": ([("a", "x", 1), ("b", "u", 5), ("a", "y", 3), ("b", "v", 4)], ["yx", "uv"], ["uv"]),
    "never across sources": ([("a", "x", 1), ("b", "y", 3)], [], []),
    "ties make no pair": ([("a", "x", 1), ("a", "y", 1)], [], []),
    "the first of equals": ([("a", "x", 1), ("a", "y", 1), ("a", "z", 0), ("a", "w", 0)], ["xz"], ["xz"]),
    "without reward": ([("a", "x", None), ("a", "y", 3), ("a", "z", 2)], ["yz"], ["yz"]),
    "one of two scored": ([("a", "x", None), ("a", "y", 3)], [], []),
    "nothing scored": ([("a", "x", None), ("a", "y", None)], [], []),
    "the best stands alone": ([("a", "x", 9), ("b", "y", 3), ("b", "z", 2)], ["yz"], []),
    "negative rewards": ([("a", "x", -2), ("a", "y", -1)], ["yx"], ["yx"]),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs(name):
    answers, per_source, best_source = CASES[name]
    for rule, expected in (("per_source", per_source), ("best_source", best_source)):
        assert [chosen.text + rejected.text for chosen, rejected in pairs_of(group_of(*answers), rule)] == expected


def test_the_written_row_is_conversational(tmp_path):
    assert write_preferences([group_of(("a", "x", 1), ("a", "y\u2028\n", 3))], tmp_path / "d.jsonl") == 1
    assert json.loads((tmp_path / "d.jsonl").read_bytes()) == {
        "prompt": [{"role": "user", "content": "hi p"}],
        "chosen": [{"role": "assistant", "content": "y\u2028\n"}],
        "rejected": [{"role": "assistant", "content": "x"}],
        "source": "a",
    }


def test_an_unknown_pairing(tmp_path):
    with pytest.raises(FuserlError, match="no pairing `all`") as caught:
        write_preferences([], tmp_path / "d.jsonl", pairs="all")
    assert "per_source" in caught.value.hint
    assert not (tmp_path / "d.jsonl").exists()


TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
ANSWERS = st.lists(st.tuples(st.sampled_from("abc"), TEXT, st.none() | st.integers(-3, 3)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(ANSWERS, min_size=1, max_size=4), st.sampled_from(["per_source", "best_source"]))
def test_what_trl_reads_is_what_we_paired(tmp_path_factory, table, rule):
    groups = [group_of(*answers, name=f"{n}") for n, answers in enumerate(table)]
    expected = [(g.prompt, c.source, c.text, r.text) for g in groups for c, r in pairs_of(g, rule)]
    path = tmp_path_factory.getbasetemp() / "trl.jsonl"
    assert write_preferences(groups, path, pairs=rule) == len(expected)
    back = list(read_groups(path, form="trl")) if expected else []
    assert [(g.prompt, g.responses[0].source, *(r.text for r in g.responses)) for g in back] == expected
    assert [(c.text, r.text) for g in back for c, r in pairs_of(g, rule)] == [row[2:] for row in expected]


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_laws_of_pairs(answers):
    group = group_of(*answers)
    per_source, best = list(pairs_of(group, "per_source")), list(pairs_of(group, "best_source"))
    assert len(best) <= 1
    assert all(pair in per_source for pair in best)
    assert len({chosen.source for chosen, _ in per_source}) == len(per_source)
    for chosen, rejected in per_source:
        assert chosen.source == rejected.source
        rewards = [r.reward for r in group.responses if r.source == chosen.source and r.reward is not None]
        assert rejected.reward == min(rewards) < max(rewards) == chosen.reward


def test_sources_that_do_not_exist_are_named_beside_those_that_do():
    groups = [group_of(("b", "x", 1), ("a", "y", 2)), group_of(("c", "z", 1), name="q")]
    with pytest.raises(FuserlError, match="no source `B`, `nobody`") as caught:
        require_sources(groups, ["a", "nobody", "B"])
    assert caught.value.hint == "its sources are a, b, c"
    stream = iter(groups)
    require_sources(stream, ["b"])
    assert next(stream) is groups[1]  # it reads no further than it must
    kept = list(keep_sources(iter(groups), ["b"]))
    assert [(g.id, sources_of([g])) for g in kept] == [("p", ("b",))]


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, unique=True, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_held_out_prompts_do_not_depend_on_what_else_is_there(ids, fraction, other):
    groups = [group_of(("a", "x", 1), name=name) for name in ids]
    rest, held_out = by_hash(groups, fraction, "salt")
    assert [g for g in groups if g in rest] == rest
    assert [g for g in groups if g not in rest] == held_out
    alone = [group.id for group in groups if by_hash([group], fraction, "salt")[1]]
    assert alone == [group.id for group in held_out]
    smaller, larger = sorted((fraction, other))
    assert {g.id for g in by_hash(groups, smaller, "salt")[1]} <= {g.id for g in by_hash(groups, larger, "salt")[1]}
    assert by_hash(groups, 0.0, "salt")[1] == []
    assert by_hash(groups, 1.0, "salt")[0] == []

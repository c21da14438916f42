"""Vocabulary maps equal the definition, know special tokens and bytes, and are kept by content."""

from __future__ import annotations

import random

import literal
import numpy as np
import published
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.distributions import marks, nearest, vocabulary
from fuserl.errors import FuserlError

strings = st.lists(st.text("abc ", max_size=6), min_size=1, max_size=12)


@given(strings, strings)
def test_the_nearest_is_the_first_nearest(wanted, among):
    def first(text: str) -> int:
        distances = [literal.edit_distance(text, other) for other in among]
        return distances.index(min(distances))

    assert nearest.nearest(wanted, among).tolist() == [first(text) for text in wanted]


def test_the_nearest_far_away_is_found_in_pieces_too(monkeypatch):
    rng = random.Random(3)
    monkeypatch.setattr(nearest, "CELLS", 50)
    among = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 20))) for _ in range(60)]
    wanted = ["".join(rng.choices("abcdefghxyz", k=rng.randint(0, 24))) for _ in range(40)]
    for text, place in zip(wanted, nearest.nearest(wanted, among), strict=True):
        distances = [literal.edit_distance(text, other) for other in among]
        assert place == distances.index(min(distances))


@pytest.mark.parametrize(("one", "other"), [("llama2", "gpt2"), ("gpt2", "llama2"), ("t5", "mistral")])
def test_parts_of_real_vocabularies_map_as_the_literal_rule(one, other):
    rng = random.Random(one)
    source, target = (
        [v.texts[token] for token in sorted(rng.sample(range(len(v)), 150))]
        for v in (published.load(one).vocabulary, published.load(other).vocabulary)
    )
    assert vocabulary.min_edit(source, target).tolist() == literal.min_edit(source, target)
    assert vocabulary.exact(source, target).tolist() == literal.exact(source, target)


def test_marks_do_not_keep_equal_tokens_apart():
    llama, gpt = published.load("llama2").vocabulary, published.load("gpt2").vocabulary
    found = vocabulary.map_tokens(llama, gpt, vocabulary.exact)
    for mark, letter in (("▁the", "Ġthe"), ("ing", "ing"), ("é", "Ã©"), ("<0x0A>", "Ċ"), ("<0xE4>", "ä")):
        assert gpt.names[found[llama.names.index(mark)]] == letter
    assert found[llama.roles["unk"]] == -1
    back = vocabulary.map_tokens(gpt, llama, vocabulary.exact)
    assert llama.names[back[gpt.names.index("A")]] == "A"  # and not <0x41>
    assert llama.names[back[gpt.names.index("ä")]] == "<0xE4>"


def test_a_vocabulary_maps_onto_itself():
    gpt = published.load("gpt2").vocabulary
    found = vocabulary.map_tokens(gpt, gpt, vocabulary.exact)
    assert (found == np.arange(len(gpt))).mean() > 0.9999


def test_special_tokens_go_by_role_then_by_name_then_to_the_unknown_one():
    source = marks.of_strings(
        ["<s>", "</s>", "<tool>", "a", "</x>", None], special=[0, 1, 2, 4], roles={"bos": 0, "eos": 1}
    )
    target = marks.of_strings(
        ["a", "<|end|>", "<tool>", "<|begin|>", "<unk>"], special=[1, 2, 3, 4], roles={"bos": 3, "eos": 1, "unk": 4}
    )
    assert vocabulary.map_tokens(source, target, vocabulary.min_edit).tolist() == [3, 1, 2, 0, 4, 4]
    assert vocabulary.map_tokens(source, target, vocabulary.exact).tolist() == [3, 1, 2, 0, -1, -1]
    matches = np.array([[2, 3, 9], [0, 3, 1]])  # a special token that stood beside an ordinary one
    assert vocabulary.statistics_map(source, target, matches).tolist() == [3, 1, 2, 0, 4, 4]
    without = marks.of_strings(["a", "</s>"], special=[1], roles={"eos": 1})
    assert vocabulary.unknown(without) == 1


def test_counts_are_those_of_all_texts(monkeypatch):
    from fuserl.distributions.alignment import Alignment

    monkeypatch.setattr(vocabulary, "HELD", 3)
    together, wanted = vocabulary.Together(7), {}
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = np.sort(rng.integers(0, 4, 5)).astype(np.int32)
        alignment = Alignment(first, first + rng.integers(0, 2, 5).astype(np.int32), 6)
        source, target = rng.integers(0, 7, 6), rng.integers(0, 9, 5)
        together.add(alignment, source, target)
        for i, j in alignment.path():
            pair = int(target[j]), int(source[i])
            wanted[pair] = wanted.get(pair, 0) + 1
    assert together.matches().tolist() == [[*pair, count] for pair, count in sorted(wanted.items())]


def test_a_map_is_made_once_a_pair(tmp_path):
    one, other = marks.of_bytes([b"a", b"b"]), marks.of_bytes([b"b", b"a"])
    calls = []

    def make():
        calls.append(1)
        return vocabulary.exact(one.texts, other.texts)

    folder = tmp_path / "new" / "cache"
    first = vocabulary.cached(folder, "exact", one, other, make)
    assert vocabulary.cached(folder, "exact", one, other, make).tolist() == first.tolist() == [1, 0]
    assert len(calls) == 1
    vocabulary.cached(folder, "min_edit", one, other, make)
    vocabulary.cached(folder, "exact", other, one, make)
    assert len(calls) == 3
    for content in (b"", b"junk", path_of(folder).read_bytes()[:-3]):
        path_of(folder).write_bytes(content)
        vocabulary.cached(folder, "exact", one, other, make)
        vocabulary.cached(folder, "exact", other, one, make)
        vocabulary.cached(folder, "min_edit", one, other, make)
    assert len(calls) == 6
    assert not list(folder.glob("*.part"))


def path_of(folder):
    return sorted(folder.glob("*.npy"))[0]


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    one = marks.of_bytes([b"a"])
    with pytest.raises(FuserlError, match="cannot be kept"):
        vocabulary.cached(tmp_path / "file", "exact", one, one, lambda: np.zeros(1, np.int32))

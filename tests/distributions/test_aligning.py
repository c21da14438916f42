"""Dynamic time warping equals the literal one, path for path; the offset aligner covers texts; nothing makes them fall."""

from __future__ import annotations

import random
import tracemalloc
from functools import lru_cache

import literal
import numpy as np
import published
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.distributions import dtw, halving, warping
from fuserl.distributions.alignment import Alignment, of_path
from fuserl.distributions.offsets import align_spans

PAIRS = (("llama2", "qwen"), ("qwen", "llama2"), ("gpt2", "t5"), ("rwkv", "mistral"), ("sentencepiece_test", "llama3"))
words = st.lists(st.text("aab c", max_size=3), min_size=1, max_size=9)


@lru_cache(20000)
def edit(a: str, b: str) -> int:
    return literal.edit_distance(a, b)


def literal_path(source: list[str], target: list[str]) -> list[list[int]]:
    return [list(match) for match in literal.warp(source, target, edit)]


@given(words, words)
def test_paths_are_the_literal_ones(source, target):
    """Few letters, so that nearly every step has ties."""
    assert dtw.dtw(source, target).path().tolist() == literal_path(source, target)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6), st.sampled_from([1, 40, 10**6]))
def test_texts_that_are_computed_together_do_not_touch(pairs, cells):
    texts = sorted({word for pair in pairs for side in pair for word in side})
    ids = [tuple([texts.index(word) for word in side] for side in pair) for pair in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtw, "CELLS", cells)
        found = dtw.dtw_many(ids, texts, texts)
    for (source, target), alignment in zip(pairs, found, strict=True):
        assert alignment.path().tolist() == literal_path(source, target)


@given(words, words, st.sampled_from([1, 6, 30]), st.sampled_from([1, 3]))
def test_a_halved_table_has_the_same_path(source, target, largest, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtw, "LARGEST", largest)
        patch.setattr(dtw, "CELLS", 1)
        patch.setattr(halving, "ROWS", rows)
        assert dtw.dtw(source, target).path().tolist() == literal_path(source, target)


@pytest.mark.parametrize("pair", PAIRS)
def test_real_tokenizers_align_as_the_literal_way_does(pair):
    source, target = map(published.load, pair)
    ids = [(source.encode(text)[0], target.encode(text)[0]) for text in published.TEXTS]
    found = dtw.dtw_many(ids, source.vocabulary.bare, target.vocabulary.bare)
    for (ours, theirs), alignment in zip(ids, found, strict=True):
        texts = [source.vocabulary.bare[token] for token in ours], [target.vocabulary.bare[token] for token in theirs]
        assert alignment.path().tolist() == literal_path(*texts)


def test_long_tokens_have_distances_above_a_byte():
    source, target = ["a" * 700, "b"], ["b" * 300, "b"]
    assert dtw.dtw(source, target).path().tolist() == literal_path(source, target)


def test_a_long_text_takes_memory_linear_in_its_tokens(monkeypatch):
    rng = random.Random(0)
    base = [rng.choice("abcdefgh") * rng.randint(1, 3) for _ in range(4000)]
    other = [word for word in base if rng.random() > 0.2]
    monkeypatch.setattr(dtw, "LARGEST", 1 << 16)
    monkeypatch.setattr(dtw, "CELLS", 1 << 16)
    peaks = []
    for size in (1000, 4000):
        source, target = base[:size], other[: int(size * 0.75)]
        tracemalloc.start()
        found = dtw.dtw(source, target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.first[0] == 0
        assert found.last[-1] == size - 1
    assert peaks[1] < 4.5 * peaks[0]  # sixteen times the cells
    assert peaks[1] < 4000 * 3000  # less than a byte a cell


def test_what_is_set_apart_never_meets():
    """The largest costs that int32 allows for, side by side."""
    costs = np.full((3, 4), 200, dtype=np.uint8)
    alone = warping.accumulated([(costs, np.arange(3))], warping.Room())[:, 0]
    together = warping.accumulated(
        [(costs, np.arange(3)), (costs * 0, np.arange(3)), (costs, np.arange(3))], warping.Room()
    )
    np.testing.assert_array_equal(together[:, 0], alone)
    np.testing.assert_array_equal(together[:, 2], alone)
    assert not together[:, 1].any()


def test_equal_tokenizers_align_one_to_one():
    ids = published.load("gpt2").encode("The quick brown fox, 1234 times")[0]
    texts = published.load("gpt2").vocabulary.bare
    (found,) = dtw.dtw_many([(ids, ids)], texts, texts)
    assert found.path().tolist() == [[place, place] for place in range(len(ids))]
    spans = published.load("gpt2").read("Ελληνικά 🙂 text")[1]
    assert align_spans(spans, spans).path().tolist() == [[place, place] for place in range(len(spans))]


@given(words, words)
def test_paths_are_whole_and_ordered(source, target):
    path = dtw.dtw(source, target).path()
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [len(source) - 1, len(target) - 1]
    assert set(map(tuple, np.diff(path, axis=0).tolist())) <= {(0, 1), (1, 0), (1, 1)}


@given(words, words)
def test_the_other_way_round_costs_the_same(source, target):
    """Ties may be broken otherwise; the sum of distances is the same."""

    def cost(path, one, other):
        return sum(edit(one[i], other[j]) for i, j in path)

    there, back = dtw.dtw(source, target).path().tolist(), dtw.dtw(target, source).path().tolist()
    assert cost(there, source, target) == cost(back, target, source)


def test_no_tokens_are_no_matches():
    found = dtw.dtw_many([([], [0]), ([0], []), ([], [])], ["a"], ["b"])
    assert [len(one.path()) for one in found] == [0, 0, 0]
    assert found[0].counts.tolist() == [0]
    assert len(align_spans(np.zeros((0, 2), dtype=np.int64), np.array([[0, 1]])).path()) == 0


@pytest.mark.parametrize("pair", [("llama2", "qwen"), ("gpt2", "rwkv"), ("mistral", "phi3"), ("falcon", "llama3")])
def test_runs_by_offsets_spell_the_same_text_on_both_sides(pair):
    source, target = map(published.load, pair)
    rng = random.Random(5)
    for text in [*published.TEXTS, *(published.random_text(rng) for _ in range(60))]:
        (_, ours), (_, theirs) = source.read(text), target.read(text)
        there, back = align_spans(ours, theirs), align_spans(theirs, ours)
        covered = 0
        for a, b, c, d in there.runs().tolist():
            assert text.encode()[ours[a, 0] : ours[b - 1, 1]] == text.encode()[theirs[c, 0] : theirs[d - 1, 1]]
            assert ours[a, 0] == covered
            covered = ours[b - 1, 1]
        assert covered == len(text.encode())
        assert {(i, j) for i, j in there.path().tolist()} == {(i, j) for j, i in back.path().tolist()}


def test_tokens_without_width_meet_at_their_place():
    source = np.array([[0, 0], [0, 3], [3, 4], [4, 4]])  # BOS Exa m EOS
    target = np.array([[0, 0], [0, 0], [0, 2], [2, 4], [4, 4]])
    found = align_spans(source, target)
    assert [list(range(a, b + 1)) for a, b in zip(found.first, found.last, strict=True)] == [[0], [0], [1], [1, 2], [3]]


def test_runs_join_what_overlaps():
    found = Alignment(np.array([0, 1, 3], np.int32), np.array([1, 2, 3], np.int32), 4)
    assert found.runs().tolist() == [[0, 3, 0, 2], [3, 4, 2, 3]]
    path = found.path()
    np.testing.assert_array_equal(of_path(path, 4, 3).path(), path)


def test_ten_thousand_texts_and_pairs_align():
    """800 random texts by 13 tokenizers, each with the next: 10,400 pairs by either aligner, none falls."""
    rng = random.Random(17)
    texts = [published.random_text(rng) for _ in range(800)]
    read = {name: [published.load(name).read(text) for text in texts] for name in published.NAMES}
    for name, other in zip(published.NAMES, (*published.NAMES[1:], published.NAMES[0]), strict=True):
        pairs = [(ours[0], theirs[0]) for ours, theirs in zip(read[name], read[other], strict=True)]
        bare = published.load(name).vocabulary.bare, published.load(other).vocabulary.bare
        for number, (warped, (source, target)) in enumerate(zip(dtw.dtw_many(pairs, *bare), pairs, strict=True)):
            exact = align_spans(read[name][number][1], read[other][number][1])
            for found in (warped, exact):
                assert found.num_source == len(source)
                assert len(found.first) == len(target)
                assert (found.last < max(len(source), 1)).all()
                matched = found.counts > 0
                assert (np.diff(found.first[matched]) >= 0).all()
            if len(source) and len(target):
                assert warped.counts.all()
                assert warped.last.max() == len(source) - 1

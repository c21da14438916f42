"""Hashes of many texts at once are those of each text's words, and the file that holds them gives them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.curation.shingles import BATCH, Spool, batches, hashed_words, mixed, runs, spans
from fuserl.curation.texts import normalised, words
from fuserl.errors import FuserlError

TEXT = st.one_of(
    st.text(st.characters()), st.text("ab1 .学ー\u0301\u200b\n", max_size=40), st.text(st.characters(codec="ascii"), max_size=60)
).map(normalised)  # fmt: skip


def by_hand(text: str, length: int, *, symbols: bool = True) -> list[tuple[str, ...]]:
    """Runs of words as anyone would write them down."""
    found = words(text, symbols=symbols)
    if len(found) < length:
        return [tuple(found)] if found else []
    return [tuple(found[place : place + length]) for place in range(len(found) - length + 1)]


@given(st.lists(TEXT, max_size=6), st.integers(1, 6), st.booleans())
def test_runs_of_a_batch_are_the_runs_of_each_text(texts, length, symbols):
    found = runs(hashed_words(texts, symbols=symbols), length)
    wanted = [by_hand(text, length, symbols=symbols) for text in texts]
    assert np.diff(found.starts).tolist() == [len(each) for each in wanted]
    names = [run for each in wanted for run in each]
    by_name, by_hash = {}, {}
    for name, number in zip(names, found.hashes.tolist(), strict=True):
        assert by_name.setdefault(name, number) == number, "one run, two hashes"
        assert by_hash.setdefault(number, name) == name, "one hash, two runs"


@given(st.lists(TEXT, min_size=2, max_size=5), st.integers(1, 4))
def test_a_text_has_the_same_hashes_in_every_company(texts, length):
    together = runs(hashed_words(texts), length)
    alone = [runs(hashed_words([text]), length).hashes for text in texts]
    np.testing.assert_array_equal(together.hashes, np.concatenate(alone))


def test_hashes_never_change():
    """They are the same in every process and version: what is found must not depend on the day."""
    assert runs(hashed_words(["one two three"]), 2).hashes.tolist() == [3467038715759767157, 10709828038319550101]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.data())
def test_a_span_is_hashed_by_its_values_alone(values, data):
    begin = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(begin, len(values)))
    shift = data.draw(st.integers(0, 5))
    here = spans(np.array(values, np.uint64), np.array([begin]), np.array([end]))
    moved = spans(np.array([7] * shift + values, np.uint64), np.array([begin + shift]), np.array([end + shift]))
    assert here == moved


def test_mixing_is_one_to_one_and_flips_half_of_the_bits():
    numbers = np.arange(1 << 16, dtype=np.uint64)
    assert len(np.unique(mixed(numbers))) == len(numbers)
    flipped = np.bitwise_count(mixed(numbers) ^ mixed(numbers ^ np.uint64(1)))
    assert 31.5 < flipped.mean() < 32.5


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 apples and 4 pears", "4 pears and 3 apples", True),
        ("3 apples", "3 pears", True),
        ("no number", "none", True),
        ("3 and 3", "3", False),
        ("12", "1 2", False),
        ("0", "", False),
    ],
)
def test_numbers_of_a_text_are_compared_without_their_order(one, other, same):
    found = hashed_words([one, other]).numbers
    assert (found[0] == found[1]) == same


@given(st.lists(st.text(max_size=50), max_size=30))
def test_batches_hold_every_text_once_and_in_order(texts):
    long = [(text * 3000, place) for place, text in enumerate(texts)]
    found = list(batches(long))
    assert [item for batch in found for item in batch] == long
    assert all(sum(len(text) for text, _ in batch[:-1]) < BATCH for batch in found)


@given(st.lists(st.lists(TEXT, max_size=4), max_size=4))
def test_what_is_kept_on_disk_comes_back(chunks):
    spool = Spool(None)
    for chunk in chunks:
        spool.add(runs(hashed_words(chunk), 2))
    texts = [text for chunk in chunks for text in chunk]
    assert len(spool) == len(texts)
    everything = runs(hashed_words(texts), 2)
    for first in range(len(texts) + 1):
        for last in range(first, len(texts) + 1):
            part = spool.read(first, last)
            assert (
                part.hashes.tolist() == everything.hashes[everything.starts[first] : everything.starts[last]].tolist()
            )
            assert part.starts.tolist() == (everything.starts[first : last + 1] - everything.starts[first]).tolist()
    for size in (1, 3, 10**6):
        blocks = list(spool.blocks(size))
        assert [text for first, last in blocks for text in range(first, last)] == list(range(len(texts)))
        assert all(last - first == 1 or len(spool.read(first, last).hashes) <= size for first, last in blocks)
    spool.close()


def test_a_disk_that_cannot_be_written_is_told():
    with pytest.raises(FuserlError, match=r"cannot be kept"):
        Spool("/nonexistent/folder")
    spool = Spool(None)
    spool._file.close()
    spool._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (closed below)
    with pytest.raises(FuserlError, match=r"No space left"):
        spool.add(runs(hashed_words(["some words"]), 1))
    spool.close()

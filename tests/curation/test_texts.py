"""When two texts are one, what their words are, and what a report may show of them."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.curation.texts import digest, excerpt, kinds, normalised, words

ANY = st.text(st.characters())  # lone surrogates too


@given(ANY)
def test_normalising_twice_is_normalising_once(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(st.characters(max_codepoint=127)), st.lists(st.sampled_from(" \t\n\r"), min_size=1))
def test_case_and_spacing_make_no_difference(text, space):
    spaced = re.sub(r"\s+", "".join(space), text) + "".join(space)
    assert normalised(spaced.upper()) == normalised(text.lower())


@pytest.mark.parametrize(
    ("one", "other"), [("ＡＢＣ１", "abc1"), ("ﬁne", "FINE"), ("Straße", "STRASSE"), ("e\u0301", "\u00c9"), ("x\u00a0y", "x y")]
)  # fmt: skip
def test_unicode_forms_of_a_text_are_that_text(one, other):
    assert digest(normalised(one)) == digest(normalised(other))


@pytest.mark.parametrize(("one", "other"), [("x < y", "x > y"), ("xy", "x y"), ("résumé", "resume"), ("1.5", "15")])
def test_what_means_something_else_is_another_text(one, other):
    assert digest(normalised(one)) != digest(normalised(other))


def test_a_space_keeps_equal_texts_apart():
    assert len({digest("same"), digest("same", "p1"), digest("same", "p2")}) == 3


@given(ANY)
def test_words_are_the_text_without_what_separates_them(text):
    small = normalised(text)
    separators = {sign for sign in small if unicodedata.category(sign)[0] in "ZC"}
    assert "".join(words(small)) == "".join(sign for sign in small if sign not in separators)
    assert all(words(small))
    assert words(small, symbols=False) == [
        word for word in words(small) if unicodedata.category(word[0])[0] not in "PS"
    ]


@given(st.text(st.characters(codec="ascii")))
def test_words_of_plain_english_are_those_of_a_regular_expression(text):
    small = normalised(text)
    assert words(small) == re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9\x00-\x1f\x7f]", small)


def test_scripts_without_spaces_count_letter_by_letter_and_the_others_word_by_word():
    assert words("我们学习 deep learning") == ["我", "们", "学", "习", "deep", "learning"]
    assert words("안녕 세상") == ["안녕", "세상"]
    assert words("कृष्ण है") == ["कृष्ण", "है"]


def test_every_character_has_a_kind():
    assert len(kinds()) == 0x110000
    assert set(kinds().tolist()) == set(range(5))


@given(ANY, st.integers(5, 50))
def test_an_excerpt_is_one_short_harmless_line(text, signs):
    shown = excerpt(text, signs)
    assert len(shown) <= signs
    assert all(unicodedata.category(sign)[0] not in "CZ" or sign == " " for sign in shown)


def test_an_excerpt_of_a_short_text_is_the_text():
    assert excerpt("short and plain", 15) == "short and plain"
    assert excerpt("short and plain", 14) == "short and pla…"

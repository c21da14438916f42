"""Constraints on form: each rule keeps its bounds, unknown ones are unknown, hostile texts take no longer than long ones."""

from __future__ import annotations

import inspect
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.constraints import RULES, readings, sentences
from fuserl.rewards.format import FormatScorer
from fuserl.rewards.protocol import Item

ENGLISH = "the weather is nice today and we all went for a walk in the park"
LESS, LEAST = "less than", "at least"
# rule, what it wants, texts that keep it, texts that break it
TABLE = [
    ("length_constraints:number_words", dict(relation=LESS, num_words=3), ["one two"], ["one two three"]),
    ("length_constraints:number_words", dict(relation=LEAST, num_words=3), ["one two-three"], ["one two"]),
    ("length_constraints:number_sentences", dict(relation=LEAST, num_sentences=2), ["One. Two", "Hm! Oh?"], ["Dr. Who"]),
    ("length_constraints:number_paragraphs", dict(num_paragraphs=2), ["a\n***\nb", "***a***b***"], ["a", "a******b"]),
    ("length_constraints:nth_paragraph_first_word", dict(num_paragraphs=2, nth_paragraph=2, first_word="word"),
     ["a\n\nWord, b", "a\n\n\"word\" b"], ["a\n\nother", "a", "a\n\nword\n\nc"]),
    ("keywords:existence", dict(keywords=["Cat", "c++"]), ["CATS like C++"], ["cat"]),
    ("keywords:frequency", dict(relation=LEAST, keyword="cat", frequency=2), ["Cat, cats"], ["cat"]),
    ("keywords:frequency", dict(relation=LESS, keyword="cat", frequency=2), ["cat"], ["cat cat"]),
    ("keywords:forbidden_words", dict(forbidden_words=["cat", "c.t"]), ["cats cut"], ["The Cat."]),
    ("keywords:letter_frequency", dict(letter="A", let_relation=LEAST, let_frequency=2), ["aA"], ["a"]),
    ("language:response_language", dict(language="de"), ["Das Wetter ist heute sehr schön."], [ENGLISH]),
    ("language:response_language", dict(language="hi"), ["आज मौसम बहुत अच्छा है और हम बाहर गए"], [ENGLISH]),
    ("detectable_content:number_placeholders", dict(num_placeholders=2), ["[a] [b]"], ["[a] [b", "[a\n] [b]"]),
    ("detectable_content:postscript", dict(postscript_marker="P.S."), ["a\nP. S. b"], ["a PS b"]),
    ("detectable_content:postscript", dict(postscript_marker="P.P.S"), ["a p.p.s b"], ["P.S. b"]),
    ("detectable_format:number_bullet_lists", dict(num_bullets=2), ["* a\n - b"], ["* a", "* a\n- b\n- c", "**a**\n- b"]),
    ("detectable_format:constrained_response", {}, ["My answer is yes."], ["yes"]),
    ("detectable_format:number_highlighted_sections", dict(num_highlights=2), ["*a* *b*", "**a**\n*b*"], ["*a* *\n*"]),
    ("detectable_format:multiple_sections", dict(section_spliter="Section", num_sections=2),
     ["Section 1 a Section 2 b"], ["Section 1", "section 1 section 2"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', "```json\n[1]\n```"], ["{a: 1}", "[" * 9999]),
    ("detectable_format:title", {}, ["<<A title>>\ntext"], ["<<>>", "<< a\n>>", "<a>"]),
    ("combination:two_responses", {}, ["a ****** b", "******a******b"], ["a ****** a", "a", "a******b******c"]),
    ("combination:repeat_prompt", dict(prompt_to_repeat="Say hi."), ["say hi. Hi!"], ["Hi! Say hi."]),
    ("startend:end_checker", dict(end_phrase="The end."), ['a the END."', "the end. "], ["The end. No."]),
    ("startend:quotation", {}, ['"a"', ' "a" '], ['"a', '"', "a"]),
    ("change_case:capital_word_frequency", dict(capital_relation=LEAST, capital_frequency=2), ["AN Apple, I"], ["AN Apple"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, "DAS WETTER IST HEUTE SEHR SCHÖN GEWESEN"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.upper(), ENGLISH.capitalize()]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted", "kept", "broken"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_rule_keeps_its_bounds(name, wanted, kept, broken):
    rule = RULES[name]
    assert [text for text in kept if not rule(text, **wanted)] == []
    assert [text for text in broken if rule(text, **wanted)] == []


def test_every_rule_has_a_line_in_the_table():
    assert {name for name, *_ in TABLE} == set(RULES)


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("One", 1), ("One. Two.", 2), ("Mr. A. Smith, e.g. here.", 1), ("It is 3.5. Yes?! No...", 3), ('"Hi." He left.', 2),
     ("1. One. 2. Two.", 4), ("a.b", 1)],
)  # fmt: skip
def test_sentences_are_counted(text, number):
    assert sentences(text) == number


@given(st.text(max_size=80))
def test_every_rule_takes_any_text(text):
    for name, wanted, *_ in TABLE:
        if "language" not in name and "english" not in name:
            assert RULES[name](text, **wanted) in (True, False)


@pytest.mark.parametrize(
    "sign", ["<", "[", "*", "\n", ".", "P.", "******", " ", '"', "Section 1", "a", "-\n", "{", ".'", "a-", "1"]
)
def test_rules_take_time_linear_in_a_hostile_text(sign):
    started = time.perf_counter()
    for text in (sign * (250_000 // len(sign)), sign * (250_000 // len(sign)) + "x"):
        for name, wanted, *_ in TABLE:
            RULES[name](text, **wanted)
        readings(text)
    assert time.perf_counter() - started < 20, "a second is plenty; quadratic time would be days"


def item(text: str, names: object, wanted: object) -> Item:
    response = Response("ann", text)
    extra = {"instruction_id_list": names, "kwargs": wanted}
    return Item("k", PromptGroup("p", (Message("user", "?"),), (response,), extra=extra), response)


def scored(text: str, names: object, wanted: object, *, loose: bool = False):
    (score,) = FormatScorer(loose=loose).score([item(text, names, wanted)])
    return score.verdict, score.reward, dict(score.detail)


COMMA, WORDS = "punctuation:no_comma", "length_constraints:number_words"


def test_the_reward_is_the_share_of_constraints_kept():
    wanted = [{}, {"relation": LESS, "num_words": 3, "keywords": None}]
    assert scored("one two", [COMMA, WORDS], wanted) == ("right", 1.0, {})
    assert scored("one, two", [COMMA, WORDS], wanted) == ("wrong", 0.5, {"broken": [COMMA]})
    assert scored("one, two, three", [COMMA, WORDS], wanted) == ("wrong", 0.0, {"broken": [COMMA, WORDS]})
    assert scored("", [COMMA, WORDS], wanted) == ("wrong", 0.0, {"broken": [COMMA, WORDS]}), (
        "an empty answer keeps nothing"
    )


def test_loose_verdicts_forgive_a_first_line_and_asterisks():
    assert scored("Sure, here it is:\none two", [COMMA], [{}])[0] == "wrong"
    assert scored("Sure, here it is:\none two", [COMMA], [{}], loose=True)[0] == "right"
    assert scored('*"quoted"*', ["startend:quotation"], [{}], loose=True)[0] == "right"


@pytest.mark.parametrize(
    ("names", "wanted", "why"),
    [
        (None, None, "has no `instruction_id_list`"),
        ([], [], "has no `instruction_id_list`"),
        ([COMMA], [], "has no `instruction_id_list`"),
        (["style:polite"], [{}], "`style:polite` is not known"),
        ([WORDS], [{}], "does not take these kwargs"),
        ([WORDS], [None], "does not take these kwargs"),
        ([WORDS], [{"relation": "about", "num_words": 3}], "does not take these kwargs"),
        ([COMMA], [{"num_words": 3}], "does not take these kwargs"),
        (["keywords:existence"], [{"keywords": [3]}], "does not take these kwargs"),
    ],
)
def test_what_cannot_be_checked_is_unknown(names, wanted, why):
    verdict, reward, detail = scored("some text", names, wanted)
    assert (verdict, reward) == ("unknown", None)
    assert why in detail["why"]


def test_identity_and_context_hold_what_decides_a_score():
    assert FormatScorer(loose=True).identity() != FormatScorer(loose=False).identity()
    assert FormatScorer(loose=True).context(item("a", [COMMA], [{}])) == [[COMMA], [{}]]
    assert list(inspect.signature(FormatScorer).parameters) == ["loose", "name"]

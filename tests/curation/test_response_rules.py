"""Rules that look at one response alone: what they drop, what they must leave, and that nothing goes uncounted."""

from __future__ import annotations

import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_files import group, real_groups, rule_of

from fuserl.curation.refusals import opening
from fuserl.curation.rules import Dropped, Found, sifted
from fuserl.errors import FuserlError

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I cannot help you with this request.",
    "I am very sorry, but as an AI language model I cannot provide medical advice.",
    "Sorry, I can't do that.",
    "I apologize, but I am unable to fulfill your request.",
    "**I cannot** create content of that kind.",
    "Unfortunately, I'm not able to write this for you.",
    "As an AI language model, I am not able to generate images.",
    "As a responsible AI assistant, I must respectfully decline to participate in this.",
    "I'm afraid I can't help with that.",
    '"I must decline to answer."',
    "对不起，我无法提供这些信息。",
    "抱歉，作为一个人工智能语言模型，我不能回答这个问题。",
    "作为一个AI语言模型，我无法提供相关内容。",
]
ANSWERS = [
    "I'm sorry to hear that your dog died. Here are a few ways to comfort your friend.",
    "I'm so sorry I'm late! Traffic was a nightmare.",
    "I'm sorry, but I can't attend the meeting on Friday. Best regards, Ann",
    "Sorry, the answer is 12.",
    "You can't see the stars in the city because of light pollution.",
    "Banks cannot use cash as capital.",
    "No, I cannot think and feel like a human.",
    "I am not capable of thinking, as I am an AI language model.",
    "As an AI language model, I don't have emotions, but a climber might say: what a view!",
    "I can't provide an exact number of days, but I can guide you on how to find it.",
    "I cannot write the full code for you, but here is an outline: ...",
    "The narrator says: I'm sorry, but I can't help you.",
    "对不起的英文是 sorry。",
    "我不能同意这种看法，因为它忽略了历史。",
    "I cannot create such a list in one answer. " + "Still, there is much to say about it. " * 30,
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_known_by_its_beginning(text):
    one = group(text)
    assert rule_of("refused")(one, one.responses[0])
    assert rule_of("refused")(group(text.upper()), group(text.upper()).responses[0])


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text):
    assert rule_of("refused")(group(text), group(text).responses[0]) is None


def test_what_counts_as_a_refusal_is_configuration():
    rule = rule_of("refused", patterns={"is moody": "<mood> no"}, parts={"mood": "bah|pah"}, unless="pah", longest=4)
    verdicts = [
        rule(group(text), group(text).responses[0]) for text in ("Bah! No", "Bah no", "Pah no", "bah no to all that")
    ]
    assert verdicts == [None, "is moody: Bah no", None, None]
    with pytest.raises(FuserlError, match=r"no regular expression"):
        rule_of("refused", patterns={"broken": "("})


@given(st.text(st.characters()))
def test_patterns_see_small_letters_from_the_first_word_on(text):
    start = opening(text)
    assert start == start.lower()
    assert not start or start[0].isalnum() or start[0] not in "*_#>\"' "


def test_dropped_refusals_of_real_answers_are_those_that_were_read_and_found_right():
    """16,283 answers: all nine drops refuse and leave it at that."""
    rule, found = rule_of("refused"), {}
    for name in ("alpaca_multi", "arena_bench_multi", "gsm8k_multi", "humaneval_multi"):
        groups = real_groups(kit.shared_data() / name)
        found[name] = sum(rule(one, response) is not None for one in groups for response in one.responses)
    assert found == {"alpaca_multi": 8, "arena_bench_multi": 1, "gsm8k_multi": 0, "humaneval_multi": 0}


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\ufeff", "\x00"])
def test_nothing_to_read_is_empty(text):
    assert rule_of("empty")(group(text), group(text).responses[0])


@pytest.mark.parametrize("text", ["0", "?", "∎", "好", "🙂"])
def test_one_sign_is_not_empty(text):
    assert rule_of("empty")(group(text), group(text).responses[0]) is None


def test_only_what_the_engine_says_was_cut_is_cut():
    rule = rule_of("truncated")
    for reason, drops in (("length", True), ("stop", False), (None, False), ("eos", False)):
        one = group("and then", finish_reason=reason)
        assert (rule(one, one.responses[0]) is not None) == drops


def test_length_counts_words_between_its_limits_and_is_off_by_itself():
    one = group("a b", "a b c", "学生们好", "")
    for limits, kept in (((None, None), 4), ((3, None), 2), ((None, 3), 3), ((3, 3), 1)):
        rule = rule_of("length", least=limits[0], most=limits[1])
        assert sum(rule(one, response) is None for response in one.responses) == kept
    with pytest.raises(FuserlError, match=r"from 5 to 2 words"):
        rule_of("length", least=5, most=2)


def test_what_a_rule_drops_and_what_it_leaves_add_up():
    one = group("Yes.", "", "Sorry, I can't do that.", name="g")
    left, dropped = sifted(rule_of("empty"), one)
    assert [response.text for response in left.responses] == ["Yes.", "Sorry, I can't do that."]
    assert dropped == [Dropped("empty", "g", "s", 1, "there is no text")]
    left, dropped = sifted(rule_of("refused"), left)
    assert [response.sample for response in left.responses] == [0]
    assert [(each.source, each.sample) for each in dropped] == [("s", 2)]


def test_a_prompt_that_loses_its_last_response_goes_with_it():
    left, dropped = sifted(rule_of("empty"), group("", " "))
    assert left is None
    assert [(each.source, each.sample) for each in dropped] == [("s", 0), ("s", 1), (None, None)]
    untouched = group("fine")
    assert sifted(rule_of("empty"), untouched) == (untouched, [])


class Harsh:
    """A corpus rule that takes every prompt."""

    name = "harsh"

    def fit(self, groups):
        """It needs to know nothing."""

    def findings(self):
        """It finds nothing out."""
        return {}

    def __call__(self, group):
        """All must go."""
        return Found(prompt="because")


def test_a_corpus_rule_can_take_the_whole_prompt():
    assert sifted(Harsh(), group("a", "b", name="g")) == (None, [Dropped("harsh", "g", None, None, "because")])

"""Questions that stand in the training data are found, as the rule of select finds them, and no others."""

from __future__ import annotations

import json

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.curation.contamination import Contaminated
from fuserl.evaluation.benchmarks.contamination import overlaps, rule_settings, without_frame
from fuserl.records.schema import Message, PromptGroup, Response

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
QUESTIONS = [
    ("clips", "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?"),
    ("weng", "Weng earns 12 dollars an hour for babysitting. Yesterday she did 50 minutes of babysitting. How much did she earn?"),
    ("short", "What is 2 + 2?"),
]  # fmt: skip
FORM = "Read this with care.\n\n{}\n\nThink it through step by step and put the final answer, and nothing else, into a box at the end."


def group(name: str, text: str, *responses: str) -> PromptGroup:
    answers = tuple(Response("s", said, number) for number, said in enumerate(responses))
    return PromptGroup(name, (Message("user", text),), answers)


def found(questions, groups, **changes):
    (one,) = overlaps({"mine": questions}, groups, **rule_settings() | changes).values()
    return one


def test_settings_are_those_of_the_rule():
    assert rule_settings() == {"ngram": 13, "shortest": 8, "min_share": 0.5, "max_frequency": 0.01, "responses": False}


def test_questions_in_the_data_are_named_with_where_they_stand():
    data = [
        group("a", "Hello there"),
        group("b", f"Please solve: {QUESTIONS[1][1]} Thanks a lot."),
        group("c", "What is 2+2?"),
    ]
    one = found(QUESTIONS, data)
    assert (one.questions, one.touched, one.ids) == (3, 2, ("weng", "short"))
    assert one.share == pytest.approx(2 / 3)
    assert {(row["question"], row["prompt"], row["source"]) for row in one.examples} == {
        ("weng", "b", None),
        ("short", "c", None),
    }
    assert all("weng earns" in row["run"] for row in one.examples if row["question"] == "weng")
    assert found(QUESTIONS, data[:1]).ids == ()
    assert found(QUESTIONS, data, examples=1).ids == one.ids
    assert len(found(QUESTIONS, data, examples=1).examples) == 1


def test_a_benchmarks_own_instructions_hide_nothing_and_find_nothing():
    asked = [(name, FORM.format(text)) for name, text in QUESTIONS]
    wrapped = "Here is a problem from my homework which I do not understand at all, help me: {} I need it by tomorrow morning, please."
    data = [
        group("a", wrapped.format(QUESTIONS[0][1])),
        group("b", FORM.format("Name a colour that has five letters in it.")),
    ]
    assert found(asked, data).ids == ("clips",)
    assert found(asked, data[1:]).touched == 0


def test_responses_are_looked_through_where_asked():
    data = [group("a", "Tell me a problem.", "Sure.", QUESTIONS[0][1])]
    assert found(QUESTIONS, data).ids == ()
    one = found(QUESTIONS, data, responses=True)
    assert one.ids == ("clips",)
    assert (one.examples[0]["source"], one.examples[0]["sample"]) == ("s", 1)


def test_turns_of_a_question_are_one_question():
    turns = [
        ("81", QUESTIONS[0][1]),
        ("81", QUESTIONS[1][1]),
        ("82", "Something else entirely, and long enough for a run of words to be made of it."),
    ]
    one = found(turns, [group("a", QUESTIONS[1][1])])
    assert (one.questions, one.ids) == (2, ("81",))


def test_every_benchmark_is_told_also_one_without_overlap_or_questions():
    told = overlaps({"a": QUESTIONS, "b": [("x", "Quite another thing, which has nothing to do with it.")], "c": []},
                    [group("a", QUESTIONS[0][1])], **rule_settings())  # fmt: skip
    assert {name: (one.questions, one.ids, one.share) for name, one in told.items()} == {
        "a": (3, ("clips",), pytest.approx(1 / 3)), "b": (1, (), 0.0), "c": (0, (), 0.0),
    }  # fmt: skip


TEXT = st.lists(st.sampled_from(WORDS[:12]), min_size=1, max_size=30).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6), st.lists(TEXT, min_size=1, max_size=8), st.data())
def test_the_same_questions_that_the_rule_of_select_finds(tmp_path_factory, questions, prompts, data):
    """What stands in `share too much` of the rule's report, by id."""
    copied = data.draw(st.sampled_from(questions))
    prompts = [*prompts, f"{prompts[0]} {copied}"]
    groups = [group(f"p{n}", text) for n, text in enumerate(prompts)]
    asked = [(f"e{n}", text) for n, text in enumerate(without_frame(questions))]
    folder = tmp_path_factory.mktemp("sets")
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in asked) or "{}"
    )
    numbers = {"ngram": 4, "shortest": 2, "min_share": 0.5, "max_frequency": 0.5, "responses": False}
    rule = Contaminated(
        "r", {"mine": {"path": "mine.jsonl", "text": "text", "id": "name"}}, str(folder), None, drop=True, **numbers
    )
    rule.fit(groups)
    wanted = {row["id"] for row in rule.findings()["matches"] if row["too much"]}
    framed = [(name, text) for (name, _), text in zip(asked, questions, strict=True)]
    (one,) = overlaps({"mine": framed}, groups, **numbers).values()
    assert set(one.ids) == wanted


def test_gsm8k_against_itself_and_against_other_problems():
    rows = [json.loads(line) for line in (kit.shared_data() / "eval" / "gsm8k_test200.jsonl").read_text().splitlines()]
    questions = [(str(n), FORM.format(row["question"])) for n, row in enumerate(rows)]
    data = [group(f"t{n}", row["question"]) for n, row in enumerate(rows) if n % 20 == 0]
    one = found(questions, data)
    assert one.ids == tuple(str(n) for n in range(0, 200, 20))

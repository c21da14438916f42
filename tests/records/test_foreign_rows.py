"""Rows of other projects' data sets, in the shapes in which those projects publish them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.foreign import looks_like
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.schema import Message

USER, YES, NO = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("assistant", "no")))
SYSTEM, HI = {"role": "system", "content": "be brief"}, (Message("user", "hi"),)


def read(path, *rows, **how):
    (path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_groups(path / "d.jsonl", **how))


def completion(model="a", response="yes", score=4.5):
    return {"model": model, "response": response, "overall_score": score}


TRL = {  # name: (row, prompt)
    "texts": ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, HI),
    "conversations": ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, HI),
    "prompt inside both sides": ({"chosen": [USER, YES], "rejected": [USER, NO]}, HI),
    "prompt twice": ({"prompt": "hi", "chosen": [USER, YES], "rejected": [USER, NO]}, HI),
    "with a system turn": (
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]},
        (Message("system", "be brief"), *HI),
    ),
}


@pytest.mark.parametrize("name", TRL)
@pytest.mark.parametrize("form", ["auto", "trl"])
def test_a_preference_is_one_source_with_two_samples(name, form, tmp_path):
    row, prompt = TRL[name]
    (group,) = read(tmp_path, row | {"prompt_id": "p", "margin": 2}, form=form)
    assert group.prompt == prompt
    assert [(r.source, r.sample, r.text, r.reward) for r in group.responses] == [
        ("trl", 0, "yes", 1.0),
        ("trl", 1, "no", 0.0),
    ]
    assert (group.id, group.extra) == ("p", {"margin": 2})


@pytest.mark.parametrize("form", ["auto", "ultrafeedback"])
def test_ultrafeedback_completions(form, tmp_path):
    row = {
        "instruction": "hi",
        "source": "evol",
        "completions": [completion(), completion("b", "no", 2), completion("a", "ok", None)],
    }
    (group,) = read(tmp_path, row, form=form)
    assert (group.prompt, group.domain) == (HI, "evol")
    assert [(r.source, r.sample, r.text, r.reward) for r in group.responses] == [
        ("a", 0, "yes", 4.5), ("b", 0, "no", 2.0), ("a", 1, "ok", None),
    ]  # fmt: skip


def test_ultrafeedback_with_scores_of_a_reward_model(tmp_path):
    row = {"prompt_id": 17, "prompt": "hi", "all_generated_responses": ["x", "y", "x"], "all_rm_scores": [0.1, -2, 0.1]}
    (group,) = read(tmp_path, row)
    assert group.id == "17"
    assert [(r.sample, r.text, r.reward) for r in group.responses] == [(0, "x", 0.1), (1, "y", -2.0), (2, "x", 0.1)]
    (group,) = read(tmp_path, {"prompt": "hi", "all_generated_responses": ["x", "y"]})
    assert [r.reward for r in group.responses] == [None, None]


def test_sharegpt_keeps_the_turns_before_the_last_answer(tmp_path):
    turns = [("system", "be brief"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    (group,) = read(tmp_path, {"id": 3, "conversations": [{"from": role, "value": text} for role, text in turns]})
    assert group.prompt == (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    assert [(r.source, r.sample, r.text, r.reward) for r in group.responses] == [("sharegpt", 0, "d", None)]
    assert group.id == "3"


@pytest.mark.parametrize("form", ["auto", "text"])
def test_a_text_is_one_response_to_a_prompt_that_names_it(form, tmp_path):
    first, second = read(
        tmp_path,
        {"text": "Once upon", "meta": {"set": "pile"}},
        {"id": 7, "text": "a time", "source": "book"},
        form=form,
    )
    assert [(r.source, r.sample, r.text) for r in first.responses] == [("text", 0, "Once upon")]
    assert first.extra == {"meta": {"set": "pile"}}
    assert (second.id, second.responses[0].source) == ("7", "book")
    assert first.prompt != second.prompt  # so that texts are held out by hash, each on its own
    with pytest.raises(FuserlError, match="appears twice"):
        read(
            tmp_path, {"text": "same"}, {"text": "other"}, {"id": "p", "text": "x"}, {"id": "p", "text": "y"}, form=form
        )


BAD = {  # name: (row, what the error says)
    "a text that is blank": ({"text": " \n"}, "`text` is missing or empty"),
    "a text that is a number": ({"text": 3}, "`text` is missing or empty"),
    "chosen is blank": ({"prompt": "hi", "chosen": " ", "rejected": "no"}, "`responses[0].text` is empty"),
    "rejected is null": ({"prompt": "hi", "chosen": "yes", "rejected": None}, "`responses[1].text` is missing"),
    "chosen ends with the user": ({"prompt": "hi", "chosen": [YES, USER], "rejected": [NO]}, "`chosen` must end with the assistant's"),
    "rejected without turns": ({"prompt": "hi", "chosen": [YES], "rejected": []}, "`rejected` must end with the assistant's"),
    "chosen of texts": ({"prompt": "hi", "chosen": ["yes"], "rejected": ["no"]}, "`chosen` must end with the assistant's"),
    "preference without prompt": ({"chosen": "yes", "rejected": "no"}, "`prompt` is missing"),
    "nothing but the answer": ({"chosen": [YES], "rejected": [NO]}, "`prompt` is missing"),
    "no completions": ({"instruction": "hi", "completions": []}, "`responses` is missing or empty"),
    "completions are texts": ({"instruction": "hi", "completions": ["x"]}, "`completions` must be a list of objects"),
    "completions by column": ({"instruction": "hi", "completions": {"model": ["a"]}}, "`completions` must be a list of objects"),
    "completion without model": ({"instruction": "hi", "completions": [completion(None)]}, "`responses[0].source` is missing"),
    "score as text": ({"instruction": "hi", "completions": [completion(score="N/A")]}, "`responses[0].reward` must be a number"),
    "no instruction": ({"completions": [completion()]}, "`prompt` is missing"),
    "too few scores": (
        {"prompt": "hi", "all_generated_responses": ["x", "y"], "all_rm_scores": [1]}, "`all_rm_scores` has 1 entries for 2 responses",
    ),
    "no turns": ({"conversations": []}, "`conversations` must end with the assistant's turn"),
    "ends with the user": ({"conversations": [{"from": "human", "value": "a"}]}, "`conversations` must end with the assistant's turn"),
    "unknown speaker": ({"conversations": [{"from": "bing", "value": "a"}]}, "`conversations[0].from` is 'bing', not one of human"),
    "turns are texts": ({"conversations": ["a"]}, "`conversations` must be a list of objects"),
    "empty turn": ({"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}]}, "`prompt[0].content` is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_foreign_row(name, tmp_path):
    row, what = BAD[name]
    good = TRL["texts"][0]
    with pytest.raises(FuserlError) as caught:
        read(tmp_path, good, row)
    assert caught.value.what.startswith(what)
    assert caught.value.where.endswith("d.jsonl, row 1")
    assert "data.on_bad_row=skip" in caught.value.hint
    report = ReadReport()
    assert read(tmp_path, good, row, on_bad_row="skip", report=report)[0].prompt == HI
    assert len(report.skipped) == 1
    assert what.split("` ")[1][:12] in report.skipped[0][1]


def test_one_bad_completion_costs_itself_alone(tmp_path):
    report = ReadReport()
    row = {"instruction": "hi", "completions": [completion(), completion("b", ""), completion("c", "no", 1)]}
    (group,) = read(tmp_path, row, on_bad_row="skip", report=report)
    assert [r.source for r in group.responses] == ["a", "c"]
    assert [what for _, what in report.skipped] == ["`responses[1].text` is empty"]


@pytest.mark.parametrize(
    ("row", "form"),
    [({"prompt": "a", "responses": []}, None), ({"prompt": "a"}, None), ([1], None), ({"chosen": 1, "rejected": 2}, "trl"),
     ({"responses": [], "chosen": 1, "rejected": 2}, None), ({"completions": []}, "ultrafeedback"), ({"conversations": []}, "sharegpt"),
     ({"text": "a"}, "text"), ({"text": "a", "prompt": "b"}, None)],
)  # fmt: skip
def test_what_a_row_looks_like(row, form):
    assert looks_like(row) == form


def test_one_file_may_hold_several_forms(tmp_path):
    own = {"prompt": "hi", "responses": [{"source": "s", "text": "yes"}]}
    groups = read(tmp_path, own, TRL["texts"][0], {"instruction": "hi", "completions": [completion()]})
    assert [group.responses[0].source for group in groups] == ["s", "trl", "a"]


TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(TURNS, TEXT)
def test_the_same_conversation_is_the_same_group_in_every_form(tmp_path_factory, turns, worse):
    folder = tmp_path_factory.getbasetemp()
    talk = [
        m for asked, said in turns for m in ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    ]
    shared = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in talk]
    prompt, answer = talk[:-1], talk[-1]
    rows = [
        {"prompt": prompt, "responses": [{"source": "s", "text": answer["content"]}]},
        {"prompt": prompt, "chosen": [answer], "rejected": [{"role": "assistant", "content": worse}]},
        {"chosen": talk, "rejected": [*prompt, {"role": "assistant", "content": worse}]},
        {"conversations": shared},
    ]
    groups = read(folder, *rows)
    assert len({group.prompt for group in groups}) == 1
    assert {group.responses[0].text for group in groups} == {answer["content"]}


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=6), st.characters(categories=("Cs",)), st.integers(0, 3))
def test_lone_surrogates_are_refused_everywhere(tmp_path_factory, text, surrogate, place):
    text = f"a{text}{surrogate}"
    row = [
        {"prompt": text, "chosen": "yes", "rejected": "no"},
        {"prompt": "hi", "chosen": "yes", "rejected": text},
        {"instruction": "hi", "completions": [completion(response=text)]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": text}]},
    ][place]
    try:
        json.loads(json.dumps(text)).encode()
    except UnicodeEncodeError:
        with pytest.raises(FuserlError, match="lone surrogate"):
            read(tmp_path_factory.getbasetemp(), row)

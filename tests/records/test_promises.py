"""What the documents promise about fields we do not know, rows without ids, and sets without rows."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.manifest import digest_of
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.splits import by_hash
from fuserl.records.store import iter_groups, write_groups
from fuserl.records.trl import write_preferences

ANSWERS = [{"source": "a", "text": "yes", "reward": 1.0}, {"source": "a", "text": "no", "reward": 0.0}]
CALL = [{"name": "add", "arguments": {"x": 1}}]
TALK = [
    {"role": "user", "content": "hi", "name": "Ada"},
    {"role": "assistant", "content": "I look it up.", "tool_calls": CALL},
    {"role": "tool", "content": "2", "tool_call_id": "c1"},
    {"role": "user", "content": "so?"},
]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WRONG = {  # fields of a manifest, and what the error says
    "files": (["groups-00000.parquet"], "`files` must map names to int"),
    "file_digests": (None, "`file_digests` must map names to str"),
    "sources": ({"a": "many"}, "`sources` must map names to int"),
    "extra": ("x", "`extra` must map names to object"),
    "groups": (None, "`groups` must be int"),
    "digest": (7, "`digest` must be str"),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_manifest_with_a_field_of_another_type_names_it(field, tmp_path):
    value, what = WRONG[field]
    write_groups(endless(3, []), tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(FuserlError, match=what) as caught:
        list(read_groups(tmp_path / "set"))
    assert caught.value.where == str(path)


def test_unknown_fields_of_messages_survive_reading_and_writing(tmp_path):
    groups = list(read_groups(lines(tmp_path / "d.jsonl", {"prompt_id": "p", "prompt": TALK, "responses": ANSWERS})))
    extras = [{"name": "Ada"}, {"tool_calls": CALL}, {"tool_call_id": "c1"}, {}]
    assert [message.extra for message in groups[0].prompt] == extras
    write_groups(groups, tmp_path / "set")
    assert list(iter_groups(tmp_path / "set")) == groups
    assert list(read_groups(tmp_path / "set" / "groups-00000.parquet")) == groups
    write_preferences(groups, tmp_path / "trl.jsonl")
    assert json.loads((tmp_path / "trl.jsonl").read_text())["prompt"] == TALK
    assert [m.extra for m in next(read_groups(tmp_path / "trl.jsonl")).prompt] == extras
    other = [replace(groups[0], prompt=(replace(groups[0].prompt[0], extra={}), *groups[0].prompt[1:]))]
    assert digest_of(other) != digest_of(groups)


def test_a_set_written_before_messages_had_fields_of_their_own_is_still_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = [PromptGroup("p", (Message("user", "hi"),), (Response("a", "yes"),))]
    write_groups(groups, tmp_path / "set")
    (row,) = pq.read_table(tmp_path / "set" / "groups-00000.parquet").to_pylist()
    row["prompt"] = [{"role": m["role"], "content": m["content"]} for m in row["prompt"]]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "old.parquet")
    assert list(read_groups(tmp_path / "old.parquet")) == groups


def test_unknown_fields_of_foreign_turns_survive(tmp_path):
    talk = {"conversations": [{"from": "human", "value": "hi", "lang": "en"}, {"from": "gpt", "value": "y", "time": 3}]}
    (group,) = read_groups(lines(tmp_path / "a.jsonl", talk))
    assert (group.prompt[0].extra, group.responses[0].extra) == ({"lang": "en"}, {"time": 3})
    said = {"role": "assistant", "content": "yes", "thinking": "..."}
    row = {
        "prompt": [TALK[0]],
        "chosen": [TALK[0], said],
        "rejected": [TALK[0], {"role": "assistant", "content": "no"}],
    }
    (group,) = read_groups(lines(tmp_path / "b.jsonl", row))
    assert group.prompt[0].extra == {"name": "Ada"}
    assert [response.extra for response in group.responses] == [{"thinking": "..."}, {}]


def test_columns_that_a_table_fills_with_nulls_do_not_make_two_conversations(tmp_path):
    filled = {"role": "user", "content": "hi", "name": None}
    row = {"prompt": [{"role": "user", "content": "hi"}]} | {
        side: [filled, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")
    }
    (group,) = read_groups(lines(tmp_path / "d.jsonl", row))
    assert group.prompt == (Message("user", "hi"),)


def test_ultrafeedback_keeps_what_it_does_not_read(tmp_path):
    row = {"prompt": "hi", "instruction": "said otherwise", "model": "m", "all_rm_scores": [3]}
    answer = {"model": "a", "response": "yes", "overall_score": 1}
    (group,) = read_groups(lines(tmp_path / "d.jsonl", row | {"completions": [answer]}))
    assert group.prompt == (Message("user", "hi"),)
    assert group.extra == {"instruction": "said otherwise", "model": "m", "all_rm_scores": [3]}


def test_tables_of_several_forms_have_null_columns(tmp_path):
    columns = dict.fromkeys(
        ("responses", "completions", "all_generated_responses", "chosen", "rejected", "conversations")
    )
    rows = [
        {"prompt": "own", "responses": ANSWERS},
        {"prompt": "pair", "chosen": "yes", "rejected": "no"},
        {"prompt": "scored", "completions": [{"model": "a", "response": "yes", "overall_score": 1}]},
        {"prompt": "sampled", "all_generated_responses": ["yes"]},
        {"conversations": [{"from": "human", "role": None, "value": "talk"}, {"role": "assistant", "content": "yes"}]},
    ]
    groups = read_groups(lines(tmp_path / "d.jsonl", *[columns | row for row in rows]))
    assert [(g.prompt[0].content, g.responses[0].text) for g in groups] == [
        (asked, "yes") for asked in ("own", "pair", "scored", "sampled", "talk")
    ]


def test_the_system_text_beside_a_conversation_is_its_first_turn(tmp_path):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    (group,) = read_groups(lines(tmp_path / "a.jsonl", {"id": "x", "conversations": talk, "system": "be brief"}))
    assert group.prompt == (Message("system", "be brief"), Message("user", "hi"))
    own = {"prompt_id": "p", "id": "x", "system": "", "conversations": [{"from": "system", "value": "s"}, *talk]}
    (group,) = read_groups(lines(tmp_path / "b.jsonl", own))
    assert (group.id, group.prompt[0]) == ("p", Message("system", "s"))
    assert group.extra == {"id": "x", "system": ""}


def test_a_domain_that_is_no_text_is_not_taken_for_none(tmp_path):
    with pytest.raises(FuserlError, match="`domain` must be a text, not list"):
        list(read_groups(lines(tmp_path / "d.jsonl", {"prompt": "hi", "responses": ANSWERS, "domain": []})))


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set" / "train.jsonl", {"prompt": "hi", "responses": ANSWERS})
    assert splits_of("~/set") == ("train",)
    assert len(list(read_groups("~/set", split="train"))) == 1


OPTIONAL = {  # rows in which an optional name is null, and what stands there instead
    "prompt_id": ({"prompt": "hi", "responses": ANSWERS, "prompt_id": None}, lambda g: g.id.startswith("prompt-")),
    "domain": ({"prompt": "hi", "responses": ANSWERS, "domain": None}, lambda g: g.domain == "general"),
    "sample": (
        {"prompt": "hi", "responses": [answer | {"sample": None} for answer in ANSWERS]},
        lambda g: [r.sample for r in g.responses] == [0, 1],
    ),
    "source of a preference": (
        {"prompt": "hi", "chosen": "yes", "rejected": "no", "source": None},
        lambda g: g.responses[0].source == "trl",
    ),
    "prompt_id of a preference": (
        {"prompt": "hi", "chosen": "yes", "rejected": "no", "prompt_id": None},
        lambda g: g.id.startswith("prompt-"),
    ),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_absent(name, tmp_path):
    row, holds = OPTIONAL[name]
    (group,) = read_groups(lines(tmp_path / "d.jsonl", row))
    assert holds(group)


def test_ids_of_rows_without_one_are_of_their_prompts_not_of_their_places(tmp_path):
    def ids(*prompts):
        rows = [{"prompt": prompt, "responses": ANSWERS} for prompt in prompts]
        return [group.id for group in read_groups(lines(tmp_path / "d.jsonl", *rows))]

    one, two = ids("one", "two")
    assert ids("two", "zero", "one") == [two, ids("zero")[0], one]
    assert ids("one", "one", "one") == [one, f"{one}-2", f"{one}-3"], "all rows of a prompt are kept"
    assert ids([{"role": "user", "content": "one", "name": "Ada"}]) == [one], "a model sees the same conversation"
    assert ids([{"role": "system", "content": "one"}, {"role": "user", "content": "one"}]) != [one]


def test_equal_prompts_stand_on_the_same_side_of_a_split(tmp_path):
    rows = [{"prompt": f"{number % 40}", "responses": ANSWERS} for number in range(200)]
    named = [row | {"prompt_id": f"p{number}"} for number, row in enumerate(rows)]
    for path in (lines(tmp_path / "a.jsonl", *rows), lines(tmp_path / "b.jsonl", *named)):
        rest, held_out = by_hash(read_groups(path), 0.3, "validation")
        assert rest
        assert held_out
        assert not {group.prompt for group in rest} & {group.prompt for group in held_out}


def test_one_number_given_twice_to_a_source_is_a_bad_response(tmp_path):
    answers = [answer | {"sample": 3} for answer in ANSWERS]
    row = {"prompt": "hi", "responses": [*answers, {"source": "b", "text": "x", "sample": 3}]}
    path = lines(tmp_path / "d.jsonl", row)
    with pytest.raises(FuserlError, match=r"`responses\[1\].sample` is 3, as an earlier response of `a`"):
        list(read_groups(path))
    report = ReadReport()
    (group,) = read_groups(path, on_bad_row="skip", report=report)
    assert [(r.source, r.text) for r in group.responses] == [("a", "yes"), ("b", "x")]
    assert len(report.skipped) == 1


def test_numbers_that_we_give_keep_off_those_that_the_row_gives(tmp_path):
    samples = [None, 0, None, 1]
    answers = [{"source": "a", "text": f"{n}"} | ({} if s is None else {"sample": s}) for n, s in enumerate(samples)]
    (group,) = read_groups(lines(tmp_path / "d.jsonl", {"prompt": "hi", "responses": answers}))
    numbers = [r.sample for r in group.responses]
    assert (numbers[1], numbers[3]) == (0, 1)
    assert all(a != b for a, b in pairwise(sorted(numbers)))


@pytest.mark.parametrize("name", ["d.jsonl", "list.json", "lines.json", "d.parquet"])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_set_without_rows_says_so(name, on_bad_row, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    else:
        path.write_text({"list.json": "[]", "lines.json": "\n\n"}.get(name, "\n \n"))
    with pytest.raises(FuserlError, match="the data set is empty") as caught:
        list(read_groups(path, on_bad_row=on_bad_row))
    assert caught.value.where == str(path)


def test_a_cut_datasets_folder_says_that_it_is_cut(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"prompt": f"{n}", "responses": ANSWERS} for n in range(50)]).save_to_disk(tmp_path / "hf")
    (arrow,) = (tmp_path / "hf").glob("*.arrow")
    whole = arrow.read_bytes()
    for share in (0, 0.1, 0.5, 0.9):
        arrow.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FuserlError, match="cut short or broken") as caught:
            list(read_groups(tmp_path / "hf"))
        assert str(tmp_path / "hf") in caught.value.where
        assert "again" in caught.value.hint


def endless(number, seen):
    for index in range(number):
        seen.append(index)
        yield PromptGroup(
            f"p{index}", (Message("user", "hi"),), (Response("a", "yes", 0, 1.0), Response("a", "no", 1, 0.0))
        )


def test_preferences_are_written_as_they_come(tmp_path, monkeypatch):
    """A long set must not be held in memory: when the last group is asked for, the first are on the disk."""
    seen, sizes = [], []

    def watched():
        yield from endless(5000, seen)
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*.part")))

    assert write_preferences(watched(), tmp_path / "d.jsonl") == 5000
    assert sizes[0] > 0.9 * (tmp_path / "d.jsonl").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_preferences_that_fail_leave_the_old_file_and_nothing_else(tmp_path):
    path = lines(tmp_path / "d.jsonl", {"old": 1})
    bad = PromptGroup("p7", (Message("user", "hi"),), (Response("a", "\ud83d", 0, 1.0), Response("a", "no", 1, 0.0)))
    with pytest.raises(FuserlError, match="lone surrogate") as caught:
        write_preferences([*endless(3, []), bad], path)
    assert "p7" in caught.value.where
    assert path.read_text() == '{"old": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_stored_set_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from endless(2, [])
        raise FuserlError("a bad row")

    with pytest.raises(FuserlError, match="a bad row"):
        write_groups(broken(), tmp_path / "set", rows_per_file=1)
    assert not list(tmp_path.iterdir())


def test_a_name_on_the_hub_is_asked_for_its_split(monkeypatch):
    import datasets

    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"prompt": "hi", "responses": ANSWERS}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(list(read_groups("somebody/some-set", split="train_prefs"))) == 1
    assert len(list(read_groups("somebody/some-set"))) == 1
    assert asked == [("somebody/some-set", "train_prefs"), ("somebody/some-set", "train")]


def test_a_set_without_splits_does_not_ask_for_one(tmp_path):
    write_groups(endless(2, []), tmp_path / "set")
    assert len(list(read_groups(tmp_path / "set", split="train"))) == 2
    path = lines(tmp_path / "d.jsonl", {"prompt": "hi", "responses": ANSWERS})
    assert len(list(read_groups(path, split="train"))) == 1
    with pytest.raises(FuserlError, match="holds no data set"):
        list(read_groups(tmp_path / "set" / "..", split="train"))

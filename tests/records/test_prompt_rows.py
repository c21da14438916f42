"""What the verbs that make data ask of rows: prompts without answers, other column names, empty answers."""

from __future__ import annotations

import json
from dataclasses import replace

import kit
import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import Message, Response
from fuserl.records.store import write_groups

PROMPTS, EMPTY = Needs(responses=False), Needs(text=False)


def rows(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_is_all_that_is_needed(tmp_path):
    path = rows(
        tmp_path, {"prompt": "a?"}, {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "b?"}]}
    )
    first, second = read_groups(path, needs=PROMPTS)
    assert first.prompt == (Message("user", "a?"),)
    assert second.prompt == (Message("system", "s"), Message("user", "b?"))
    assert first.responses == second.responses == ()
    assert first.id.startswith("prompt-")
    with pytest.raises(FuserlError, match="`responses` is missing"):
        list(read_groups(path))


def test_answers_that_are_there_are_not_read(tmp_path):
    path = rows(tmp_path, {"prompt": "a?", "responses": "nonsense"}, {"prompt": "b?", "responses": [{"source": "s"}]})
    assert [group.responses for group in read_groups(path, needs=PROMPTS)] == [(), ()]
    write_groups(kit.random_groups(2), tmp_path / "set")
    assert [group.responses for group in read_groups(tmp_path / "set", needs=PROMPTS)] == [(), ()]


def test_columns_may_have_other_names(tmp_path):
    path = rows(tmp_path, {"id": "x", "question": "a?", "final_answer": "7", "answer": "long"})
    columns = {"prompt": "question", "reference": "final_answer", "prompt_id": "id"}
    (group,) = read_groups(path, needs=PROMPTS, columns=columns)
    assert (group.id, group.prompt[0].content, group.reference) == ("x", "a?", "7")
    assert group.extra == {"answer": "long"}, "other columns stay under their own names"


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = rows(tmp_path, {"question": "a?"})
    with pytest.raises(FuserlError, match=r"`problem` is no column of the row, which has question") as caught:
        list(read_groups(path, needs=PROMPTS, columns={"prompt": "problem"}))
    assert "row 0" in caught.value.where


def test_columns_of_a_foreign_form(tmp_path):
    path = rows(tmp_path, {"ask": "a?", "chosen": "yes", "rejected": "no"})
    (group,) = read_groups(path, columns={"prompt": "ask"})
    assert [response.text for response in group.responses] == ["yes", "no"]


def test_an_empty_answer_is_an_answer_for_those_who_count_them(tmp_path):
    answers = [{"source": "s", "text": ""}, {"source": "s", "text": " \n"}, {"source": "s", "text": "x"}]
    path = rows(tmp_path, {"prompt": "a?", "responses": answers})
    (group,) = read_groups(path, needs=EMPTY)
    assert [(response.sample, response.text) for response in group.responses] == [(0, ""), (1, " \n"), (2, "x")]
    with pytest.raises(FuserlError, match=r"responses\[0\].text` is empty"):
        list(read_groups(path))
    for bad in ({"source": "s"}, {"source": "s", "text": None}, {"source": "s", "text": 5}):
        with pytest.raises(FuserlError, match="text`"):
            list(read_groups(rows(tmp_path, {"prompt": "a?", "responses": [bad]}), needs=EMPTY))


def test_stored_empty_answers_are_kept_refused_or_left_out(tmp_path):
    full, (group,) = Response("s", "x", 1), kit.random_groups(1)
    write_groups([replace(group, responses=(Response("s", " ", 0), full))], tmp_path / "set")
    (kept,) = read_groups(tmp_path / "set", needs=EMPTY)
    assert [response.text for response in kept.responses] == [" ", "x"]
    with pytest.raises(FuserlError, match="`fuserl select` drops them"):
        list(read_groups(tmp_path / "set"))
    report = ReadReport()
    (left,) = read_groups(tmp_path / "set", on_bad_row="skip", report=report)
    assert left.responses == (full,)
    assert len(report.skipped) == 1
    write_groups([replace(group, responses=(Response("s", "", 0),))], tmp_path / "empty")
    with pytest.raises(FuserlError, match="empty answers alone"):
        list(read_groups(tmp_path / "empty"))

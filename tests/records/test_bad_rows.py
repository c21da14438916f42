"""Whatever stands in a row: a group, or one error with file, row and field; in a lenient reader a line in the report."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups, splits_of

GOOD = {
    "prompt": "hi",
    "responses": [{"source": "a", "text": "yes", "reward": 1.0}, {"source": "b", "text": "no", "reward": 0}],
}


def response(**fields):
    return GOOD | {"responses": [GOOD["responses"][0], GOOD["responses"][1] | fields]}


def turns(*roles):
    return GOOD | {"prompt": [{"role": role, "content": "x"} for role in roles]}


ROW_IS_LOST = {  # name: (row or raw line, what the error says)
    "blank prompt": (GOOD | {"prompt": " \n\t"}, "`prompt[0].content` is empty"),
    "prompt is null": (GOOD | {"prompt": None}, "`prompt` is missing or empty"),
    "prompt is an object": (
        GOOD | {"prompt": {"role": "user"}},
        "`prompt` must be a text or a list of messages, not dict",
    ),
    "message is a text": (GOOD | {"prompt": ["x"]}, "`prompt[0]` must be an object with `role` and `content`"),
    "role is missing": (GOOD | {"prompt": [{"content": "x"}]}, "`prompt[0].role` is None, not one of system"),
    "role is a list": (
        GOOD | {"prompt": [{"role": ["user"], "content": "x"}]},
        "`prompt[0].role` is ['user'], not one of",
    ),
    "role in capitals": (
        GOOD | {"prompt": [{"role": "User", "content": "x"}]},
        "`prompt[0].role` is 'User', not one of",
    ),
    "content in parts": (
        GOOD | {"prompt": [{"role": "user", "content": [{"type": "text"}]}]},
        "`prompt[0].content` must be a text",
    ),
    "system alone": (turns("system"), "`prompt` must end with the user's turn, not the system's"),
    "ends with an answer": (turns("user", "assistant"), "`prompt` must end with the user's turn, not the assistant's"),
    "ends with a tool": (turns("user", "tool"), "`prompt` must end with the user's turn, not the tool's"),
    "lone surrogate in the prompt": (GOOD | {"prompt": "a\ud83d"}, "`prompt[0].content` holds a lone surrogate"),
    "responses are null": (GOOD | {"responses": None}, "`responses` is missing or empty"),
    "responses are an object": (GOOD | {"responses": {"a": "yes"}}, "`responses` is missing or empty"),
    "id is a number": (GOOD | {"prompt_id": 7}, "`prompt_id` must be a text, not int"),
    "id is empty": (GOOD | {"prompt_id": ""}, "`prompt_id` is empty"),
    "id appears twice": (GOOD | {"prompt_id": "first"}, "`prompt_id` 'first' appears twice"),
    "domain is a list": (GOOD | {"domain": ["x"]}, "`domain` must be a text, not list"),
    "reference is an object": (GOOD | {"reference": {"x": 1}}, "`reference` must be a text, not dict"),
    "a number": (7, "`row` must be an object, not int"),
    "null": (None, "`row` must be an object, not NoneType"),
    "a text": ("x", "`row` must be an object, not str"),
    "half a row": (b'{"prompt": "hi", "respon', "`row` is not valid JSON"),
    "two rows in a line": (b'{"prompt": "hi"}{"prompt": "hi"}', "`row` is not valid JSON (Extra data"),
    "single quotes": (b"{'prompt': 'hi'}", "`row` is not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "`row` is not valid JSON (Unexpected UTF-8 BOM"),
    "latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "`row` is not valid UTF-8 at byte 15"),
    "UTF-16": ('{"prompt": "hi"}'.encode("utf-16"), "`row` is not valid UTF-8 at byte 0"),
    "endless nesting": (b"[" * 100_000, "`row` is not valid JSON"),
}
RESPONSE_IS_LOST = {  # name: (row, field of the second response, what the error says)
    "blank text": (response(text=" \n"), "text", "is empty"),
    "no text": (response(text=None), "text", "is missing"),
    "text is a list": (response(text=["yes"]), "text", "must be a text, not list"),
    "lone surrogate": (response(text="\udc00"), "text", "holds a lone surrogate"),
    "blank source": (response(source=" "), "source", "is empty"),
    "source is a number": (response(source=3), "source", "must be a text, not int"),
    "lone surrogate in the source": (response(source="\ud800"), "source", "holds a lone surrogate"),
    "NaN": (response(reward=float("nan")), "reward", "is nan, not a finite number"),
    "minus infinity": (response(reward=float("-inf")), "reward", "is -inf, not a finite number"),
    "reward as text": (response(reward="0.5"), "reward", "must be a number or null, not str"),
    "empty reward": (response(reward=""), "reward", "must be a number or null, not str"),
    "reward as truth value": (response(reward=False), "reward", "must be a number or null, not bool"),
    "several rewards": (response(reward=[1, 2]), "reward", "must be a number or null, not list"),
    "weight as text": (response(weight="1"), "weight", "must be a number or null, not str"),
    "NaN weight": (response(weight=float("nan")), "weight", "is nan, not a finite number"),
    "sample as text": (response(sample="1"), "sample", "must be a whole number from 0, not '1'"),
    "sample as fraction": (response(sample=1.0), "sample", "must be a whole number from 0, not 1.0"),
    "sample as truth value": (response(sample=True), "sample", "must be a whole number from 0, not True"),
    "negative sample": (response(sample=-1), "sample", "must be a whole number from 0, not -1"),
    "unknown verdict": (
        response(verdict="correct"),
        "verdict",
        "is 'correct', not one of right, wrong, unknown or null",
    ),
    "verdict as truth value": (response(verdict=True), "verdict", "is True, not one of"),
    "verdict is a list": (response(verdict=["right"]), "verdict", "is ['right'], not one of"),
    "finish reason is a list": (response(finish_reason=[]), "finish_reason", "must be a text, not list"),
}


def write(path, *rows):
    """JSON lines; bytes stand as they are."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def around(path, bad):
    return write(path, GOOD | {"prompt_id": "first"}, bad, GOOD | {"prompt_id": "last"})


@pytest.mark.parametrize("name", ROW_IS_LOST)
def test_a_bad_row(name, tmp_path):
    bad, what = ROW_IS_LOST[name]
    path = around(tmp_path / "d.jsonl", bad)
    with pytest.raises(FuserlError) as caught:
        list(read_groups(path))
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"{path}, row 1"
    assert "data.on_bad_row=skip" in caught.value.hint
    report = ReadReport()
    assert [group.id for group in read_groups(path, on_bad_row="skip", report=report)] == ["first", "last"]
    assert (report.rows, report.groups) == (3, 2)
    ((where, left_out),) = report.skipped
    assert where == f"{path}, row 1"
    assert left_out.startswith(what)


@pytest.mark.parametrize("name", RESPONSE_IS_LOST)
def test_a_bad_response_costs_the_response_not_the_group(name, tmp_path):
    bad, field, what = RESPONSE_IS_LOST[name]
    path = around(tmp_path / "d.jsonl", bad | {"prompt_id": "middle"})
    with pytest.raises(FuserlError) as caught:
        list(read_groups(path))
    assert caught.value.what.startswith(f"`responses[1].{field}` {what}")
    assert caught.value.where == f"{path}, row 1"
    report = ReadReport()
    groups = list(read_groups(path, on_bad_row="skip", report=report))
    assert [group.id for group in groups] == ["first", "middle", "last"]
    assert [r.source for r in groups[1].responses] == ["a"]
    ((where, left_out),) = report.skipped
    assert where == f"{path}, row 1"
    assert left_out.startswith(f"`responses[1].{field}` {what}")


def test_a_group_without_usable_response_is_lost_and_says_why(tmp_path):
    bad = GOOD | {"responses": [{"source": "a", "text": ""}, {"source": "b", "text": "x", "reward": "good"}]}
    report = ReadReport()
    groups = list(read_groups(around(tmp_path / "d.jsonl", bad), on_bad_row="skip", report=report))
    assert [group.id for group in groups] == ["first", "last"]
    assert report.skipped[0][1] == "`responses` holds no usable response (`responses[0].text` is empty)"


def test_unknown_fields_missing_rewards_and_identical_answers_are_no_mistakes(tmp_path):
    answers = [
        {"source": "a", "text": "yes", "variant": "x"},
        {"source": "a", "text": "yes"},
        {"source": "b", "text": "yes", "reward": None},
    ]
    path = write(
        tmp_path / "d.jsonl", {"prompt": "hi", "responses": answers, "difficulty": {"level": 3}, "reference": 42}
    )
    (group,) = read_groups(path)
    assert [(r.source, r.sample, r.reward) for r in group.responses] == [("a", 0, None), ("a", 1, None), ("b", 0, None)]
    assert group.responses[0].extra == {"variant": "x"}
    assert group.extra == {"difficulty": {"level": 3}}
    assert (group.domain, group.reference) == ("general", "42")


@pytest.mark.parametrize(
    ("given_samples", "numbered"),
    [([None, None, None], [0, 1, 2]), ([1, 2], [1, 2]), ([5, None], [5, 6]), ([3, 1, None], [3, 1, 4])],
)
def test_samples_without_number_are_numbered_in_order(given_samples, numbered, tmp_path):
    answers = [
        {"source": "a", "text": f"{n}"} | ({} if s is None else {"sample": s}) for n, s in enumerate(given_samples)
    ]
    (group,) = read_groups(write(tmp_path / "d.jsonl", {"prompt": "hi", "responses": answers}))
    assert [r.sample for r in group.responses] == numbered


def test_a_number_lost_with_its_response_is_given_to_nobody_else_by_position(tmp_path):
    answers = [
        {"source": "a", "text": "x", "sample": 0},
        {"source": "a", "text": "", "sample": 1},
        {"source": "a", "text": "z", "sample": 2},
    ]
    path = write(tmp_path / "d.jsonl", {"prompt": "hi", "responses": answers})
    (group,) = read_groups(path, on_bad_row="skip")
    assert [(r.sample, r.text) for r in group.responses] == [(0, "x"), (2, "z")]


def test_line_ends_and_blank_lines(tmp_path):
    inner = GOOD | {"prompt": "a\u2028b\x85c\x0cd\r\ne"}  # characters that str.splitlines would cut at
    lines = [json.dumps(GOOD).encode() + b"\r", b"", b"   ", json.dumps(inner, ensure_ascii=False).encode()]
    groups = list(read_groups(write(tmp_path / "d.jsonl", *lines)))
    assert [group.prompt[0].content for group in groups] == ["hi", inner["prompt"]]


def test_rows_are_numbered_as_an_editor_counts_lines(tmp_path):
    with pytest.raises(FuserlError) as caught:
        list(read_groups(write(tmp_path / "d.jsonl", GOOD, b"", b"", {"prompt": ""})))
    assert caught.value.where.endswith("row 3")


@pytest.mark.parametrize(
    "content",
    [json.dumps([GOOD, GOOD]), json.dumps(GOOD) + "\n" + json.dumps(GOOD), json.dumps([GOOD, GOOD], indent=2)],
)
@pytest.mark.parametrize("packed", [False, True])
def test_json_files_hold_a_list_or_lines(content, packed, tmp_path):
    path = tmp_path / ("d.json.gz" if packed else "d.json")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert len(list(read_groups(path))) == 2


def test_reading_is_lazy(tmp_path):
    rows = read_groups(write(tmp_path / "d.jsonl", GOOD, b"{"))
    assert next(rows).prompt[0].content == "hi"
    with pytest.raises(FuserlError):
        next(rows)


def test_one_report_counts_over_several_files(tmp_path):
    report = ReadReport()
    for name in ("a", "b"):
        list(read_groups(write(tmp_path / f"{name}.jsonl", GOOD, {"prompt": ""}), on_bad_row="skip", report=report))
    assert (report.rows, report.groups, len(report.skipped)) == (4, 2, 2)
    assert report.summary() == "2 groups of 4 rows, 2 rows or responses left out"


@pytest.mark.parametrize("fields", [{"form": "xml"}, {"on_bad_row": "ignore"}])
def test_unknown_settings_list_the_known_ones(fields, tmp_path):
    with pytest.raises(FuserlError) as caught:
        list(read_groups(write(tmp_path / "d.jsonl", GOOD), **fields))
    assert ("fuserl" if "form" in fields else "skip") in caught.value.hint


def test_a_folder_names_the_splits_it_has(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", GOOD)
    assert splits_of(tmp_path) == ("train", "validation")
    assert len(list(read_groups(tmp_path, split="validation"))) == 1
    for split in ("test", None):
        with pytest.raises(FuserlError) as caught:
            list(read_groups(tmp_path, split=split))
        assert caught.value.hint == "it has train, validation"


def test_a_parquet_file_of_plain_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD | {"prompt": "ho"}]), tmp_path / "d.parquet")
    assert [g.prompt[0].content for g in read_groups(tmp_path / "d.parquet")] == ["hi", "ho"]
    pq.write_table(pa.Table.from_pylist([{"prompt": "hi"}]), tmp_path / "e.parquet")
    with pytest.raises(FuserlError, match="`responses` is missing") as caught:
        list(read_groups(tmp_path / "e.parquet"))
    assert caught.value.where.endswith("e.parquet, row 0")


def test_a_hub_name_without_network_is_one_clear_error():
    with pytest.raises(FuserlError, match="cannot be loaded") as caught:
        list(read_groups("nobody/no-such-set"))
    assert caught.value.where == "nobody/no-such-set"
    assert "network" in caught.value.hint


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "a", "right"])
)
KEYS = st.sampled_from(["role", "content", "source", "text", "reward", "sample", "verdict", "weight"]) | st.text(
    max_size=3
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
FIELDS = st.sampled_from(["prompt_id", "prompt", "responses", "domain", "reference"])
WILD = (
    ANYTHING
    | st.dictionaries(FIELDS, ANYTHING).map(lambda fields: GOOD | fields)
    | st.dictionaries(KEYS, ANYTHING).map(lambda f: response(**f))
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WILD, min_size=1, max_size=4))
def test_no_row_whatever_escapes_the_two_outcomes(tmp_path_factory, rows):
    path = write(tmp_path_factory.getbasetemp() / "wild.jsonl", *rows)
    report = ReadReport()
    kept = list(read_groups(path, on_bad_row="skip", report=report))
    assert report.rows == len(rows)
    assert len(kept) == report.groups
    assert report.groups + len(report.skipped) >= report.rows, "a row is a group or it is listed"
    try:
        assert list(read_groups(path)) == kept
        assert not report.skipped
    except FuserlError as error:
        assert error.where == report.skipped[0][0]
        assert error.hint


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_whatever_escape_either(tmp_path_factory, content):
    for name in ("w.jsonl", "w.json", "w.jsonl.gz", "w.parquet"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        with pytest.raises(FuserlError) as caught:
            list(read_groups(path))
        assert name in caught.value.where


def test_a_gzip_file_cut_anywhere_is_found_out(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(GOOD | {"prompt": f"{n}"}).encode() + b"\n" for n in range(20)))
    for cut in range(len(whole)):
        (tmp_path / "d.jsonl.gz").write_bytes(whole[:cut])
        for lenient in ("error", "skip")[: 2 if cut else 1]:
            with pytest.raises(FuserlError, match="cut short or broken|is empty"):
                list(read_groups(tmp_path / "d.jsonl.gz", on_bad_row=lenient))

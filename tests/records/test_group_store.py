"""A data set's folder is whole or absent, streams, and tells when it was damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import kit
import pyarrow.parquet as pq
import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.manifest import digest_of, read_manifest, write_text_atomically
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import iter_groups, write_groups


def test_groups_pass_through_and_are_not_collected(tmp_path):
    files_seen = []

    def stream():
        for number, group in enumerate(kit.random_groups(50)):
            if number % 10 == 0:
                files_seen.append(len(list((tmp_path / "set.part").glob("*.parquet"))))
            yield group

    write_groups(stream(), tmp_path / "set", rows_per_file=10)
    assert files_seen == [0, 1, 2, 3, 4], "ten groups are written before the next ten are asked for"


def test_reading_does_not_wait_for_later_files(tmp_path):
    write_groups(kit.random_groups(4), tmp_path / "set", rows_per_file=2)
    (tmp_path / "set" / "groups-00001.parquet").unlink()
    groups = iter_groups(tmp_path / "set")
    assert [next(groups).id, next(groups).id] == ["p0", "p1"]
    with pytest.raises(FuserlError, match="missing or half-written") as caught:
        next(groups)
    assert caught.value.where.endswith("groups-00001.parquet")


def test_one_row_a_group_zstd_and_nothing_left_behind(tmp_path):
    groups = kit.random_groups(7)
    manifest = write_groups(groups, tmp_path / "set", rows_per_file=3, manifest_extra={"scorer": "none"})
    assert manifest.files == {"groups-00000.parquet": 3, "groups-00001.parquet": 3, "groups-00002.parquet": 1}
    assert {path.name for path in tmp_path.rglob("*")} == {"set", "manifest.json", *manifest.files}
    metadata = pq.ParquetFile(tmp_path / "set" / "groups-00000.parquet").metadata
    assert metadata.num_rows == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert read_manifest(tmp_path / "set").extra == {"scorer": "none"}
    assert (manifest.groups, manifest.responses) == (7, 28)
    assert manifest.sources == {"s0": 14, "s1": 14}
    assert manifest.domains == {"d0": 4, "d1": 3}


def test_the_digest_sees_content_and_order_and_nothing_else(tmp_path):
    groups = kit.random_groups(6)
    digest = digest_of(groups)
    assert (
        digest
        == write_groups(groups, tmp_path / "a", rows_per_file=1).digest
        == write_groups(groups, tmp_path / "b").digest
    )
    assert digest == digest_of(read_groups(tmp_path / "a"))
    first, answer = groups[0], groups[0].responses[0]
    changes = [
        groups[::-1], groups[:-1],
        *([replace(first, **change), *groups[1:]] for change in (
            {"id": "q"}, {"domain": "q"}, {"reference": "q"}, {"extra": {"q": 1}}, {"prompt": (Message("user", "q"),)},
            {"responses": first.responses[::-1]}, {"responses": first.responses[:-1]},
            *({"responses": (replace(answer, **change), *first.responses[1:])} for change in (
                {"source": "q"}, {"text": "q"}, {"sample": 9}, {"reward": None}, {"reward": 0.25}, {"verdict": "right"}, {"weight": 1.0},
                {"finish_reason": "q"}, {"sampling": {}}, {"extra": {"q": 1}})))),
    ]  # fmt: skip
    digests = {digest_of(changed) for changed in changes}
    assert len(digests) == len(changes)
    assert digest not in digests


def test_an_interrupted_write_leaves_no_data_set_and_does_not_hinder_the_next(tmp_path):
    def broken():
        yield from kit.random_groups(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_groups(broken(), tmp_path / "set", rows_per_file=2)
    assert not list(tmp_path.iterdir())
    (tmp_path / "set.part").mkdir()  # what a killed process leaves
    (tmp_path / "set.part" / "groups-00000.parquet").write_text("half")
    with pytest.raises(FuserlError, match="no data set"):
        list(read_groups(tmp_path / "set.part"))
    write_groups(kit.random_groups(1), tmp_path / "set", rows_per_file=2)
    assert [group.id for group in read_groups(tmp_path / "set")] == ["p0"]
    assert not (tmp_path / "set.part").exists()


def test_a_data_set_is_never_written_over(tmp_path):
    write_groups(kit.random_groups(2), tmp_path / "set")
    with pytest.raises(FuserlError, match="exists already") as caught:
        write_groups(kit.random_groups(3), tmp_path / "set")
    assert caught.value.where == str(tmp_path / "set")
    assert len(list(read_groups(tmp_path / "set"))) == 2


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new\ud800")
    assert path.read_text() == "old"
    write_text_atomically(path, "new")
    assert path.read_text() == "new"


def test_parquet_cut_anywhere_is_found_out(tmp_path):
    write_groups(kit.random_groups(3), tmp_path / "set")
    path = tmp_path / "set" / "groups-00000.parquet"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        for source in (tmp_path / "set", path):
            with pytest.raises(FuserlError, match="missing or half-written") as caught:
                list(read_groups(source, on_bad_row="skip"))
            assert caught.value.where == str(path)


def test_a_file_with_other_rows_than_the_manifest_says(tmp_path):
    write_groups(kit.random_groups(4), tmp_path / "a")
    write_groups(kit.random_groups(3), tmp_path / "b")
    (tmp_path / "b" / "groups-00000.parquet").replace(tmp_path / "a" / "groups-00000.parquet")
    with pytest.raises(FuserlError, match="changed after it was written"):
        list(read_groups(tmp_path / "a"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"groups": 1}', '{"unknown": 1}'])
def test_a_broken_manifest(content, tmp_path):
    write_groups(kit.random_groups(1), tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text(content)
    with pytest.raises(FuserlError, match="manifest cannot be read") as caught:
        list(read_groups(tmp_path / "set"))
    assert caught.value.where.endswith("manifest.json")


def test_a_newer_schema_says_update(tmp_path):
    write_groups(kit.random_groups(1), tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(FuserlError, match="schema version 2, this fuserl reads up to 1") as caught:
        list(read_groups(tmp_path / "set"))
    assert caught.value.hint == "update fuserl"


def test_an_id_twice_in_a_stored_set_is_refused_or_left_out(tmp_path):
    write_groups(kit.random_groups(1) * 2, tmp_path / "set")
    with pytest.raises(FuserlError, match="'p0' appears twice") as caught:
        list(read_groups(tmp_path / "set"))
    assert caught.value.where.endswith("group 1")
    assert len(list(read_groups(tmp_path / "set", on_bad_row="skip"))) == 1


def test_an_empty_data_set_can_be_written_but_not_trained_on(tmp_path):
    assert write_groups([], tmp_path / "set").groups == 0
    with pytest.raises(FuserlError, match="the data set is empty"):
        list(read_groups(tmp_path / "set"))


def test_splits_stored_side_by_side(tmp_path):
    for split, number in (("train", 3), ("test", 1)):
        write_groups(kit.random_groups(number), tmp_path / split)
    assert len(list(read_groups(tmp_path, split="train"))) == 3
    assert len(list(read_groups(tmp_path, split="test"))) == 1


def test_hard_texts_and_numbers_come_back_exactly(tmp_path):
    texts = [
        "\x00",
        "a\r\nb\u2028c",
        "\ufeffx",
        "e\u0301 \u00e9",
        "\u202eabc",
        "\U0001f469\u200d\U0001f4bb",
        "<|eot_id|>",
        "\uffff",
        "  x  ",
    ]
    rewards = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, None]
    responses = tuple(
        Response("s", text, n, rewards[n % len(rewards)], extra={text: [text, None]}) for n, text in enumerate(texts)
    )
    group = PromptGroup("\u0000id", (Message("user", "\t?"),), responses, extra={"deep": {"a": [1, {"b": None}]}})
    write_groups([group], tmp_path / "set")
    (again,) = read_groups(tmp_path / "set")
    assert again == group
    assert [str(r.reward) for r in again.responses] == [str(r.reward) for r in responses]


def test_the_digest_is_that_of_the_slow_way():
    odd = PromptGroup(
        "p", (Message("user", "a", {"n": (1, None)}),), kit.random_groups(1)[0].responses, extra={"d": {2: b"x"}}
    )
    for group in [*kit.random_groups(3), odd]:
        slow = json.dumps(asdict(group), sort_keys=True, ensure_ascii=True, default=str).encode()
        assert digest_of([group]) == hashlib.sha256(slow).hexdigest()

"""Every format is read, and what is written comes back."""

from __future__ import annotations

import gzip
import json

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.manifest import digest_of, read_manifest
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.selection import keep_sources, sources_of
from fuserl.records.splits import by_hash, in_part
from fuserl.records.store import iter_groups, write_groups
from fuserl.records.trl import write_preferences

COUNTS = {  # prompts of train, validation, test
    "alpaca_multi": (605, 100, 100),
    "gsm8k_multi": (1000, 119, 200),
    "zeroeval_multi": (2121, 319, 400),
    "arena_bench_multi": (220, 40, 40),
    "humaneval_multi": (104, 20, 40),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_sets_are_read_whole(name):
    folder = kit.shared_data() / name
    assert splits_of(folder) == ("train", "validation", "test")
    for split, count in zip(splits_of(folder), COUNTS[name], strict=True):
        report = ReadReport()
        groups = list(read_groups(folder, split=split, on_bad_row="skip", report=report))
        assert len(groups) == count
        assert report.groups == count
        assert all("empty" in what for _, what in report.skipped)
    if name == "zeroeval_multi":
        llama = [r for g in groups for r in g.responses if r.source == "Llama-3.1-405B-Instruct"]
        assert {r.sample for r in llama} == {0, 1, 2}
        assert all("variant" in r.extra for r in llama)


def test_empty_texts_stop_a_strict_reader():
    with pytest.raises(FuserlError, match="is empty") as caught:
        list(read_groups(kit.shared_data() / "humaneval_multi", split="train"))
    assert "data.on_bad_row=skip" in caught.value.hint


TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda text: text.strip()
)
RESPONSE = st.builds(
    Response, source=TEXT, text=TEXT, sample=st.integers(0, 9), reward=st.none() | st.floats(-1e6, 1e6),
    verdict=st.sampled_from([None, "right", "wrong", "unknown"]), weight=st.none() | st.floats(0, 10), finish_reason=st.none() | TEXT,
    sampling=st.none() | st.dictionaries(TEXT, st.integers()), extra=st.dictionaries(TEXT, TEXT, max_size=2),
)  # fmt: skip
GROUPS = st.lists(
    st.builds(
        PromptGroup, id=TEXT, prompt=st.lists(st.builds(Message, st.just("user"), TEXT), min_size=1, max_size=3).map(tuple),
        responses=st.lists(RESPONSE, min_size=1, max_size=4).map(tuple), domain=TEXT, reference=st.none() | TEXT,
    ),
    min_size=1, max_size=5, unique_by=lambda group: group.id,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(GROUPS)
def test_what_is_written_comes_back(tmp_path_factory, groups):
    folder = tmp_path_factory.mktemp("round") / "set"
    manifest = write_groups(groups, folder, rows_per_file=2)
    assert list(iter_groups(folder)) == groups
    assert list(read_groups(folder)) == groups
    assert read_manifest(folder) == manifest
    assert manifest.digest == digest_of(groups)
    assert manifest.groups == len(groups)


def test_foreign_formats(tmp_path):
    rows = {
        "ultrafeedback": {"instruction": "hi", "source": "x", "completions": [
            {"model": "a", "response": "yes", "overall_score": 7.5}, {"model": "b", "response": "no", "overall_score": 2}]},
        "princeton": {"prompt": "hi", "all_generated_responses": ["yes", "no"], "all_rm_scores": [0.2, 0.1]},
        "trl": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
        "trl conversation": {"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
                             "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]},
        "sharegpt": {"id": "7", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    }  # fmt: skip
    for name, row in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row))
        (group,) = read_groups(path)
        assert group.prompt == (Message("user", "hi"),), name
        assert group.responses[0].text == "yes", name
        if "trl" in name:
            assert [(r.source, r.sample, r.reward) for r in group.responses] == [("trl", 0, 1.0), ("trl", 1, 0.0)]


def test_a_saved_datasets_folder(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [
        {"prompt": "hi", "prompt_id": str(n), "responses": [{"source": "a", "text": "yes", "reward": 1.0}]}
        for n in range(3)
    ]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "hf")
    assert splits_of(tmp_path / "hf") == ("train", "test")
    assert len(list(read_groups(tmp_path / "hf", split="train"))) == 3
    assert len(list(read_groups(tmp_path / "hf", split="test"))) == 1


def test_trl_gets_the_same_pairs(tmp_path):
    groups = kit.random_groups(5, 2, 3)
    assert write_preferences(groups, tmp_path / "all.jsonl") == 10
    assert write_preferences(groups, tmp_path / "best.jsonl", pairs="best_source") == 5
    for line, group in zip((tmp_path / "best.jsonl").read_text().splitlines(), groups, strict=True):
        row = json.loads(line)
        best = max(group.responses, key=lambda r: r.reward)
        worst = min((r for r in group.responses if r.source == best.source), key=lambda r: r.reward)
        assert row["chosen"] == [{"role": "assistant", "content": best.text}]
        assert row["rejected"] == [{"role": "assistant", "content": worst.text}]
    assert len(list(read_groups(tmp_path / "all.jsonl"))) == 10


def test_splits_depend_on_the_id_alone():
    groups = kit.random_groups(400)
    _, held_out = by_hash(groups, 0.25, "salt")
    assert 60 < len(held_out) < 140
    again = by_hash(groups[::-1], 0.25, "salt")[1]
    assert {g.id for g in again} == {g.id for g in held_out}
    low = {g.id for g in groups if in_part(g.id, 0, 0.4)}
    high = {g.id for g in groups if in_part(g.id, 0.4, 1)}
    assert not low & high
    assert len(low | high) == 400


def test_keeping_sources():
    groups = kit.random_groups(3, 3, 2)
    assert sources_of(groups) == ("s0", "s1", "s2")
    assert sources_of(keep_sources(groups, ["s0", "s2"])) == ("s0", "s2")


def test_gzipped_and_plain_are_the_same(tmp_path):
    line = json.dumps({"prompt": "hi", "responses": [{"source": "a", "text": "b"}]}).encode()
    (tmp_path / "a.jsonl").write_bytes(line)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line))
    assert list(read_groups(tmp_path / "a.jsonl")) == list(read_groups(tmp_path / "b.jsonl.gz"))

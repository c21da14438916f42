"""The published sets beside the checkout: what is read equals what their card states."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict

import kit
import pytest

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.selection import sources_of
from fuserl.records.store import iter_groups, write_groups

CARDS = {  # source -> (responses, mean reward to four digits, of these empty and thus left out)
    "alpaca_multi": {
        "FuseChat-Gemma-2-9B-Instruct": (805, 0.7050, 0),
        "FuseChat-Qwen-2.5-7B-Instruct": (805, 0.6464, 0),
        "FuseChat-Llama-3.1-8B-Instruct": (805, 0.6333, 0),
        "FuseChat-Llama-3.2-3B-Instruct": (805, 0.5130, 0),
        "Mixtral-8x7B-Instruct-v0.1_concise": (805, 0.1374, 0),
        "OpenHermes-2.5-Mistral-7B": (805, 0.1034, 0),
        "Qwen-14B-Chat": (805, 0.0750, 0),
        "gemma-7b-it": (805, 0.0694, 0),
    },
    "gsm8k_multi": {
        "gpt3-175b-verification": (1319, 0.5625, 0),
        "gpt3-6b-verification": (1319, 0.3904, 0),
        "gpt3-175b-finetuning": (1319, 0.3472, 0),
        "gpt3-6b-finetuning": (1319, 0.2168, 0),
    },
    "zeroeval_multi": {
        "Llama-3.1-405B-Instruct": (7784, 0.8081, 0),
        "Mistral-Large-2": (2840, 0.7775, 0),
        "deepseek-v2.5-0908": (2840, 0.7394, 0),
        "Meta-Llama-3.1-70B-Instruct": (2840, 0.7317, 0),
        "Qwen2-72B-Instruct": (2840, 0.6996, 0),
        "Qwen2.5-72B-Instruct": (1521, 0.6752, 0),
        "gemma-2-27b-it": (2840, 0.6500, 0),
    },
    "arena_bench_multi": {
        "Mixtral-8x7B-Instruct-v0.1": (296, 0.6541, 1),
        "Starling-LM-7B-alpha": (296, 0.5476, 0),
        "openchat_3.5": (296, 0.5091, 0),
        "vicuna-33b-v1.3": (295, 0.4400, 0),
        "Llama-2-70b-chat": (299, 0.4351, 0),
        "Mistral-7B-Instruct-v0.1": (298, 0.3574, 0),
    },
    "humaneval_multi": {
        "WizardCoder-33B-V1.1": (328, 0.8018, 0),
        "WizardCoder-15B-V1.0": (164, 0.6037, 0),
        "CodeLlama-34b-Instruct-hf": (328, 0.5335, 0),
        "starcoder": (328, 0.3933, 0),
        "codegen-16B-mono": (1639, 0.2062, 11),
    },
}
EXTRAS = {  # fields of the group, fields of the responses that are not ours and must survive
    "alpaca_multi": (set(), set()),
    "gsm8k_multi": ({"reference_answer"}, set()),
    "zeroeval_multi": ({"question", "task", "reference_answer"}, {"variant", "extracted_answer"}),
    "arena_bench_multi": (set(), {"score"}),
    "humaneval_multi": ({"entry_point", "test"}, {"form", "origin", "variant"}),
}


def read_all(name, report=None):
    folder = kit.shared_data() / name
    for split in splits_of(folder):
        yield from read_groups(folder, split=split, on_bad_row="skip", report=report)


@pytest.mark.parametrize("name", CARDS)
def test_responses_rewards_and_left_out_ones_equal_the_card(name):
    report, count, rewards = ReadReport(), Counter(), defaultdict(float)
    group_fields, response_fields = set(), set()
    for group in read_all(name, report):
        group_fields |= set(group.extra)
        for response in group.responses:
            count[response.source] += 1
            rewards[response.source] += response.reward
            response_fields |= set(response.extra)
    assert count == {source: total - empty for source, (total, _, empty) in CARDS[name].items()}
    assert len(report.skipped) == sum(empty for _, _, empty in CARDS[name].values())
    for source, (total, mean, empty) in CARDS[name].items():
        # what was left out is bounded by rewards of 0 and 1, so the card's mean pins the rest
        assert rewards[source] / total <= mean + 6e-5
        assert rewards[source] / total >= mean - empty / total - 6e-5
    assert (group_fields, response_fields) == EXTRAS[name]
    assert report.groups == report.rows, "a group loses single responses here, never all of them"


def test_what_is_left_out_is_listed_by_file_row_and_field():
    report = ReadReport()
    list(read_all("arena_bench_multi", report))
    ((where, what),) = report.skipped
    assert where.endswith("arena_bench_multi/train.jsonl.gz, row 59")
    assert what == "`responses[0].text` is empty"
    assert report.summary() == "300 groups of 300 rows, 1 rows or responses left out"


def test_splits_of_a_set_share_no_prompt():
    for name in CARDS:
        folder = kit.shared_data() / name
        ids = [{group.id for group in read_groups(folder, split=s, on_bad_row="skip")} for s in splits_of(folder)]
        assert len(set.union(*ids)) == sum(map(len, ids))


def test_samples_that_start_anywhere_keep_their_numbers():
    first = Counter(
        min(r.sample for r in group.responses if r.source == "Llama-3.1-405B-Instruct")
        for group in read_all("zeroeval_multi")
    )
    assert first == {0: 2825, 1: 15}  # 15 prompts lack the first serving stack


def test_strict_and_lenient_readers_agree_where_nothing_is_bad():
    folder = kit.shared_data() / "gsm8k_multi"
    strict = list(read_groups(folder, split="test"))
    assert strict == list(read_groups(folder, split="test", on_bad_row="skip"))
    assert sources_of(strict) == tuple(sorted(CARDS["gsm8k_multi"]))


@pytest.mark.parametrize(
    ("name", "split"), [("arena_bench_multi", "train"), ("humaneval_multi", "train"), ("humaneval_multi", "test")]
)
def test_an_empty_text_stops_a_strict_reader_and_names_the_way_out(name, split):
    with pytest.raises(FuserlError, match=r"`responses\[\d+\]\.text` is empty") as caught:
        list(read_groups(kit.shared_data() / name, split=split))
    assert f"{split}.jsonl.gz, row " in caught.value.where
    assert "data.on_bad_row=skip" in caught.value.hint


@pytest.mark.parametrize("name", ["zeroeval_multi", "humaneval_multi"])
def test_a_real_set_survives_the_store(name, tmp_path):
    groups = list(read_groups(kit.shared_data() / name, split="test", on_bad_row="skip"))
    manifest = write_groups(groups, tmp_path / "set", rows_per_file=150)
    assert list(iter_groups(tmp_path / "set")) == groups
    assert manifest.responses == sum(len(group.responses) for group in groups)


def test_samples_without_a_prompt_are_refused_and_load_once_they_have_one(tmp_path):
    source = kit.shared_data() / "cruxeval_samples" / "samples.jsonl.gz"
    with pytest.raises(FuserlError, match="`prompt` is missing") as caught:
        next(read_groups(source))
    assert caught.value.where.endswith("samples.jsonl.gz, row 0")
    report = ReadReport()
    assert list(read_groups(source, on_bad_row="skip", report=report)) == []
    assert (report.rows, report.groups, len(report.skipped)) == (1600, 0, 1600)
    with gzip.open(source, "rt") as rows, gzip.open(tmp_path / "d.jsonl.gz", "wt") as mended:
        for row in map(json.loads, rows):
            mended.write(json.dumps(row | {"prompt": f"{row['code']}\nassert f({row['input']}) == ??"}) + "\n")
    groups = list(read_groups(tmp_path / "d.jsonl.gz"))
    assert len(groups) == 1600
    assert {tuple(r.sample for r in group.responses) for group in groups} == {tuple(range(10))}
    assert set(groups[0].extra) == {"mode", "code", "input", "output"}


@pytest.mark.parametrize(
    "path", ["eval/gsm8k_test200.jsonl", "eval/humaneval.jsonl", "eval/ifeval_gpt4_verdicts.jsonl.gz", "alpaca_eval_fixtures/OpenHermes-2.5-Mistral-7B/outputs.json.gz"],
)  # fmt: skip
def test_files_that_hold_no_groups_are_refused(path):
    with pytest.raises(FuserlError, match=r"`(prompt|responses)` is missing"):
        list(read_groups(kit.shared_data() / path))

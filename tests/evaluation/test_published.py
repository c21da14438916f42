"""Published rows are those of the papers: their averages come out, names are found, and broken files are told."""

from __future__ import annotations

import pytest

from fuserl.errors import FuserlError
from fuserl.evaluation.published import published, rows_in
from fuserl.settings import config_folder

SUITE = ("alpaca_eval", "arena_hard", "mt_bench", "alignbench", "gsm8k", "math", "amc23", "livebench", "mmlu_pro",
         "mmlu_redux", "gpqa_diamond", "humaneval", "mbpp", "livecodebench")  # fmt: skip
FILES = sorted(path.stem for path in (config_folder() / "published").glob("*.yaml"))


@pytest.mark.parametrize("row", published(["fusechat3"]), ids=lambda row: row.name)
def test_the_average_of_fusechat3_comes_out_of_its_numbers(row):
    wanted = set(SUITE)
    if "32_1b" in row.name:
        wanted = wanted - {"mmlu_redux", "livecodebench"} | {"mmlu"}
    assert set(row.values) == wanted
    assert row.mean_over(row.values) == pytest.approx(row.average, abs=0.06), "all are rounded to a tenth"


def test_sixteen_rows_of_fusechat3_by_target_and_stage():
    names = [row.name.removeprefix("fusechat3/") for row in published(["fusechat3"])]
    assert len(names) == 16
    assert [name for name in names if name.startswith("llama31_8b")] == [
        f"llama31_8b/{stage}" for stage in ("base", "sft", "final", "tulu3")
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "fusechat3/llama31_8b/final",
            {"alpaca_eval": 65.4, "arena_hard": 58.2, "mt_bench": 9.0, "livecodebench": 13.1},
        ),
        ("fusechat3/qwen25_7b/sft", {"math": 72.7, "amc23": 45.0, "humaneval": 81.7}),
        ("fusechat3/gemma2_9b/base", {"gsm8k": 88.5, "gpqa_diamond": 39.4}),
        ("fusechat3/llama31_8b/tulu3", {"mbpp": 56.3, "alignbench": 6.2}),
        (
            "wrpo/llama3_8b/final",
            {"alpaca_eval": 55.9, "alpaca_eval/win_rate": 57.6, "arena_hard": 46.2, "mt_bench": 7.63},
        ),
        ("fusechat/openchat35_7b/final", {"alpaca_eval": 17.16, "alpaca_eval/win_rate": 11.52, "mt_bench": 7.38}),
        ("fusellm/llama2_7b/final", {"bbh": 41.75, "commonsense": 64.56, "multipl_e": 15.56}),
    ],
)
def test_numbers_are_those_of_the_papers(name, values):
    (row,) = published([name])
    assert values.items() <= row.values.items()
    assert row.provenance == "read"


@pytest.mark.parametrize(
    "row", published(["fusechat/openchat35_7b", "fusechat/sources", "fusechat/ensembles"]), ids=lambda row: row.name
)
def test_mt_bench_is_the_mean_of_its_turns(row):
    turns = (row.values["mt_bench/turn_1"] + row.values["mt_bench/turn_2"]) / 2
    assert row.values["mt_bench"] == pytest.approx(turns, abs=0.03)


def test_fusellms_averages_come_out_of_their_parts():
    (final,) = published(["fusellm/llama2_7b/final"])
    parts = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa")
    assert final.values["commonsense"] == pytest.approx(final.mean_over(parts), abs=0.006)
    for row in published(["fusellm/pythia"]):
        domains = [f"perplexity/{name}" for name in ("phil", "nih", "uspto")]
        assert row.values["perplexity/average"] == pytest.approx(row.mean_over(domains), abs=1e-4)


def test_only_what_was_reported_by_others_is_second_hand():
    assert {row.title for row in published(FILES) if row.provenance == "second_hand"} == {"FuseRL"}


def test_a_row_is_told_once_in_the_order_asked_for():
    names = [
        row.name for row in published(["wrpo/llama3_8b/base", "fusechat3/llama31_8b/final", "fusechat3/llama31_8b"])
    ]
    assert names == [
        "wrpo/llama3_8b/base",
        *(f"fusechat3/llama31_8b/{stage}" for stage in ("final", "base", "sft", "tulu3")),
    ]
    assert published([]) == []


def test_cells_hold_one_number_a_benchmark_without_an_interval():
    (row,) = published(["wrpo/llama3_8b/final"])
    assert set(row.cells) == {"alpaca_eval", "arena_hard", "mt_bench", "open_llm_leaderboard"}
    number = row.cells["alpaca_eval"]
    assert (number.value, number.low, number.high, number.over) == (55.9, None, None, "published: WRPO")
    assert row.mean_over(["alpaca_eval", "arena_hard"]) == pytest.approx(51.05)
    assert row.mean_over(["alpaca_eval", "gsm8k"]) is row.mean_over([]) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fusechat3/llama31_8b/finall", "fusechat3/llama31_8b/final"),
        ("wpro", "wrpo"),
        ("", "fusechat3"),
        ("xyzzy", "fusellm"),
    ],
)
def test_a_row_that_is_not_there_is_told_with_those_near_it(name, near):
    with pytest.raises(FuserlError) as caught:
        published([name])
    assert near in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[]", "", "title: a", "title: a\nsource: b\nprovenance: heard\nrows: {m: {label: m, values: {gsm8k: 1}}}",
        "title: a\nsource: b\nprovenance: read\nrows: {m: {label: m, values: {gsm8k: high}}}",
        "title: a\nsource: b\nprovenance: read\nrows: {m: {label: m, values: {}}}", "title: [",
    ],
)  # fmt: skip
def test_a_broken_file_is_told(text):
    with pytest.raises(FuserlError, match="cannot be read"):
        rows_in("mine", text)

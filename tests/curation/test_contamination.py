"""Overlap with evaluation sets: as a slow search finds it, told before anything goes, and neither too much nor too little."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_files import group, prompts, rule_of

from fuserl.curation import overlap
from fuserl.curation.rules import sifted
from fuserl.curation.texts import normalised, words
from fuserl.errors import FuserlError
from fuserl.records.formats import read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
CHINESE = "小明有十二个苹果，他给了小红五个，又买了七个，请问小明现在一共有多少个苹果？"
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


def against(folder: Path, texts: list[str], **settings: Any) -> Any:
    """The rule, for one evaluation set with these texts."""
    rows = [json.dumps({"name": f"e{place:03d}", "question": text}) for place, text in enumerate(texts)]
    (folder / "mine.jsonl").write_text("\n".join(rows) + "\n")
    mine = {"path": "mine.jsonl", "text": "question", "id": "name"}
    return rule_of("contaminated", **{"folder": str(folder), "sets": {"mine": mine}, "against": ["mine"]} | settings)


def dropped_by(rule: Any, groups: list[PromptGroup]) -> set[str]:
    """Ids of prompts that go."""
    rule.fit(groups)
    return {each.id for each in groups if rule(each).prompt is not None}


def grams(text: str, length: int) -> set[tuple[str, ...]]:
    found = words(normalised(text), symbols=False)
    return {tuple(found[place : place + length]) for place in range(max(1, len(found) - length + 1))} - {()}


def slow(
    texts: list[str], groups: list[PromptGroup], ngram: int, shortest: int, min_share: float, frequency: float
) -> set[str]:
    """Every prompt against every evaluation text, word by word."""
    here = {each.id: normalised(each.prompt[0].content) for each in groups}
    runs_here = {name: {n: grams(text, n) for n in range(1, ngram + 1)} for name, text in here.items()}
    runs_there = [grams(text, ngram) for text in texts]
    in_set = Counter(run for runs in runs_there for run in runs)
    different = {here[name]: runs_here[name] for name in here}
    in_data = Counter()
    for runs in different.values():
        wanted = {run for n in (*range(shortest, ngram), ngram) for run in runs[n]}
        in_data.update(run for run in in_set if run in wanted)
    limits = [max(frequency * total, overlap.COMMON) for total in (len([r for r in runs_there if r]), len(here))]
    template = {run for run in in_set if in_set[run] > limits[0] or in_data[run] > limits[1]}
    gone = set()
    for name, of_length in runs_here.items():
        for there in runs_there:
            if not there - template:
                continue
            length = len(next(iter(there)))
            mine = of_length[ngram] if length < shortest else of_length[ngram] | of_length[length]
            shared = (mine & there) - template
            hits = {
                run
                for n in (*range(shortest, ngram), ngram)
                for run in of_length[n]
                if run in in_set and run in template
            }
            size = max(len(of_length[ngram]) - len(hits), 1)
            if len(shared) >= min_share * min(len(there - template), size) and shared:
                gone.add(name)
    return gone


def case(seed: int) -> tuple[list[str], list[PromptGroup]]:
    """Evaluation texts of 1 to 30 words; prompts that hold all, half or a little of one, or nothing."""
    random = Random(seed)
    texts = [" ".join(random.choices(WORDS[:60], k=random.choice([1, 2, 3, 4, 6, 12, 30]))) for _ in range(30)]
    found = []
    for _ in range(80):
        text = random.choice(texts).split()
        part = text[: max(1, round(len(text) * random.choice([0.1, 0.4, 0.6, 1.0])))]
        around = [random.choices(WORDS[:60], k=random.choice([0, 0, 1, 10])) for _ in range(2)]
        found.append(
            random.choice([" ".join, ", ".join, lambda all_of_it: "  ".join(all_of_it).upper()])(
                around[0] + part + around[1]
            )
        )
    return texts, prompts(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ngram", "shortest", "share"), [(4, 2, 0.5), (3, 1, 0.3), (5, 5, 0.8), (5, 9, 0.5), (1, 1, 1.0)]
)
def test_what_goes_is_what_a_slow_search_finds(seed, ngram, shortest, share, tmp_path):
    texts, groups = case(seed)
    rule = against(tmp_path, texts, ngram=ngram, shortest=shortest, min_share=share)
    wanted = slow(texts, groups, ngram, shortest, share, 0.01)
    assert dropped_by(rule, groups) == wanted
    assert 0 < len(wanted) < len(groups) or ngram == 1


@pytest.mark.parametrize("seed", range(2))
def test_templates_count_as_a_slow_search_counts_them(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "COMMON", 3)
    texts, groups = case(seed)
    frame = "answer in the form that was asked for"
    texts = [f"{frame} {text}" for text in texts]
    groups = prompts([f"{frame} {each.prompt[0].content}" for each in groups])
    settings = {"ngram": 4, "shortest": 2, "min_share": 0.5, "max_frequency": 0.05}
    wanted = slow(texts, groups, 4, 2, 0.5, 0.05)
    rule = against(tmp_path, texts, **settings)
    assert dropped_by(rule, groups) == wanted
    templates = rule.findings()["runs of templates, not counted"]
    assert "answer in the form" in {row["run"] for row in templates}
    assert len(dropped_by(against(tmp_path, texts, **settings | {"max_frequency": 1.0}), groups)) > len(wanted)


@given(st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_order_does_not_matter_and_twice_is_once(tmp_path_factory, random):
    texts, groups = case(random.randrange(100))
    rule = against(tmp_path_factory.mktemp("set"), texts, ngram=4, shortest=2)
    gone = dropped_by(rule, groups)
    told = rule.findings()
    random.shuffle(groups)
    assert dropped_by(rule, groups) == gone
    assert rule.findings() == told
    left = [each for each in groups if each.id not in gone]
    assert not dropped_by(rule, left)


@pytest.mark.parametrize(
    ("text", "goes"),
    [
        (QUESTION, True),
        (QUESTION.upper().replace(" ", "\n"), True),
        (QUESTION.replace(",", "").replace(".", ""), True),
        (f"Solve this step by step.\n\n{QUESTION}\n\nGive the number only.", True),
        (QUESTION.split(". ")[0], True),  # a part of it
        (QUESTION.replace("48", "52").replace("Natalia", "Weng"), False),  # related: other names and numbers
        (f"{'Once upon a time there was a shop. ' * 20} {' '.join(QUESTION.split()[:14])} and so on", False),  # one run
        ("How many clips did Natalia sell?", False),
        ("", False),
    ],
)
def test_a_question_is_known_in_every_dress_and_its_relatives_stay(text, goes, tmp_path):
    assert (dropped_by(against(tmp_path, [QUESTION]), prompts([text])) == {"p0000"}) == goes


@pytest.mark.parametrize(
    ("there", "here", "goes"),
    [
        ("Are you sentient?", "are you  SENTIENT", True),
        ("Are you sentient?", "Tell me: are you sentient?", False),  # too short to be looked for inside
        (
            "What happens if you eat watermelon seeds on Mondays?",
            "Q: What happens if you eat watermelon seeds on Mondays? A:",
            True,
        ),
        (
            "What happens if you eat watermelon seeds on Mondays?",
            "What happens if you eat melon seeds on Mondays?",
            False,
        ),
        (CHINESE, f"请回答：{CHINESE}", True),
        (CHINESE, CHINESE.replace("小明", "大卫").replace("苹果", "梨"), False),
        ("中国的首都是哪里", "请问，中国的首都是哪里？", True),
        ("???", "???", False),  # no words
    ],
)
def test_short_and_chinese_texts(there, here, goes, tmp_path):
    assert (dropped_by(against(tmp_path, [there, QUESTION]), prompts([here])) == {"p0000"}) == goes


def test_copies_of_one_question_are_no_template(tmp_path):
    """Of thirty copies all go, although their runs stand in many prompts: they are one text."""
    assert len(dropped_by(against(tmp_path, [QUESTION]), prompts([QUESTION] * 30 + ["other"]))) == 30


def test_a_match_is_told_with_its_shares_whether_or_not_it_drops(tmp_path):
    half = " ".join(QUESTION.split()[:20])
    groups = prompts([QUESTION, f"{half} {' '.join(WORDS)}"])
    for drop in (True, False):
        rule = against(tmp_path, [QUESTION], drop=drop)
        assert dropped_by(rule, groups) == ({"p0000"} if drop else set())
        rows = rule.findings()["matches"]
        assert [(row["id"], row["prompt"], row["too much"]) for row in rows] == [
            ("e000", "p0000", True),
            ("e000", "p0001", False),
        ]
        assert [(row["of the evaluation text"], row["runs shared"]) for row in rows] == [(1.0, 19), (0.421, 8)]
        assert rows[1]["of the text here"] < 0.1
        assert rows[0]["first run shared"] in " ".join(words(normalised(QUESTION), symbols=False))
        assert len(rows[0]["first run shared"].split()) == 13
        assert rule.findings()["evaluation sets"] == [
            {"evaluation set": "mine", "texts": 1, "texts found here": 1, "share a run": 2, "share too much": 1}
        ]


def test_responses_are_looked_through_when_asked(tmp_path):
    one = group("I do not know.", f"You ask: {QUESTION}", prompt="Repeat after me.")
    assert sifted(fitted(against(tmp_path, [QUESTION]), one), one) == (one, [])
    left, dropped = sifted(fitted(against(tmp_path, [QUESTION], responses=True), one), one)
    assert [response.sample for response in left.responses] == [0]
    assert dropped[0][:4] == ("contaminated", "p", "s", 1)
    assert dropped[0].why.startswith("100% shared with mine e000: natalia sold clips to")


def fitted(rule: Any, *groups: PromptGroup) -> Any:
    rule.fit(groups)
    return rule


ROWS = [
    {
        "n": 7,
        "q": QUESTION,
        "turns": [QUESTION, "And in June?"],
        "chat": [{"role": "user", "content": QUESTION}],
        "no": 3,
    }
]


@pytest.mark.parametrize("text", ["q", "turns", "chat", ["q", "turns"]])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet"])
def test_evaluation_files_of_every_form_are_read(text, ending, tmp_path):
    path = tmp_path / f"set.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        content = json.dumps(ROWS[0] if ending.startswith("jsonl") else ROWS).encode()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    rule = rule_of(
        "contaminated", folder=str(tmp_path), against=["x"], sets={"x": {"path": path.name, "text": text, "id": "n"}}
    )
    assert dropped_by(rule, prompts([QUESTION, "And in June?", "another"])) == (
        {"p0000", "p0001"} if "turns" in text else {"p0000"}
    )
    assert {row["id"] for row in rule.findings()["matches"]} == {"7"}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"path": "gone.jsonl", "text": "q", "id": None}, "there is no file"),
        ({"path": "set.jsonl", "text": "question", "id": None}, "no column `question`"),
        ({"path": "set.jsonl", "text": "q", "id": "key"}, "no column `key`"),
        ({"path": "set.jsonl", "text": "no", "id": None}, "not int"),
        ({"path": "set.jsonl", "text": "q"}, "its settings are path, text"),
        ({"path": "broken.jsonl", "text": "q", "id": None}, "not valid JSON"),
        ({"path": "list.jsonl", "text": "q", "id": None}, "must be an object"),
        ({"path": "empty.jsonl", "text": "q", "id": None}, "is empty"),
    ],
)
def test_what_is_wrong_with_an_evaluation_set_is_told(sets, message, tmp_path):
    (tmp_path / "set.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "list.jsonl").write_text("[1]")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(FuserlError, match=message):
        rule_of("contaminated", folder=str(tmp_path), against=["x"], sets={"x": sets}).fit(prompts(["a"]))


@pytest.mark.parametrize(
    "wrong", [{"ngram": 0}, {"shortest": 0}, {"min_share": 0}, {"max_frequency": 1.5}, {"against": ["none"]}]
)
def test_settings_out_of_range_are_told(wrong, tmp_path):
    with pytest.raises(FuserlError):
        against(tmp_path, [QUESTION], **wrong)


REAL = {  # set -> split -> (prompts, those that go, evaluation set -> texts found)
    "gsm8k_multi": {"test": (200, 200, {"gsm8k": 200}), "validation": (119, 0, {}), "train": (1000, 0, {})},
    "zeroeval_multi": {"test": (400, 200, {"gsm8k": 200}), "train": (2121, 0, {})},
    "humaneval_multi": {"train": (104, 104, {"humaneval": 104}), "test": (40, 40, {"humaneval": 40})},
    "alpaca_multi": {"train": (605, 1, {"mt_bench": 1}), "validation": (100, 1, {"mt_bench": 1}), "test": (100, 0, {})},
    "arena_bench_multi": {"train": (220, 3, {"arena_hard": 2, "mt_bench": 1}), "test": (40, 0, {})},
}


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, splits in REAL.items() for split in splits])
def test_real_prompts_against_real_evaluation_sets(name, split):
    """Every leak that the data card states is found, whole and without its framing, and nothing else goes."""
    num_prompts, gone, texts = REAL[name][split]
    data = kit.shared_data()
    groups = list(read_groups(data / name, split=split, needs=Needs(responses=False)))
    rule = rule_of("contaminated", folder=str(data / "eval"))
    assert (len(groups), len(dropped_by(rule, groups))) == (num_prompts, gone)
    found = {row["evaluation set"]: row["texts found here"] for row in rule.findings()["evaluation sets"]}
    assert {each: count for each, count in found.items() if count} == texts


def test_related_questions_of_one_set_are_told_and_stay():
    """Two of 119 GSM8K questions are turned-round versions of test questions."""
    data = kit.shared_data()
    groups = list(read_groups(data / "gsm8k_multi", split="validation", needs=Needs(responses=False)))
    rule = rule_of("contaminated", folder=str(data / "eval"), against=["gsm8k"])
    assert not dropped_by(rule, groups)
    rows = [(row["prompt"], row["id"], row["too much"]) for row in rule.findings()["matches"]]
    assert rows == [("gsm8k-test-558", "gsm8k-test-418", False), ("gsm8k-test-488", "gsm8k-test-761", False)]

"""The data set that ships: whole, clean, split by prompt, and as its card describes it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

import fuserl
from fuserl.miniature.tasks import DOMAINS, score, solved
from fuserl.records.formats import read_groups, splits_of

MINIATURE = Path(fuserl.__file__).parent / "miniature"
SOURCES = ("gemma2", "llama", "mistral", "qwen2")
SPLITS = {"train": 2000, "validation": 400, "test": 800}
MANY = ("between", "pair", "evens", "letters")  # domains with several right answers
CARD = (MINIATURE / "DATA_CARD.md").read_text()

each_split = pytest.mark.parametrize("split", SPLITS)


@cache
def rows(split: str) -> list[dict]:
    """The split's rows as they were written."""
    with gzip.open(MINIATURE / "data" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def answers(split: str, source: str | None = None, domain: str | None = None) -> list[tuple[str, dict]]:
    """(prompt, response) of a source and a domain."""
    return [
        (row["prompt"], response)
        for row in rows(split)
        for response in row["responses"]
        if source in (None, response["source"]) and domain in (None, row["domain"])
    ]


def best_four(row: dict) -> list[dict]:
    """The four responses of highest reward."""
    return sorted(row["responses"], key=lambda response: -response["reward"])[:4]


def test_it_is_small():
    files = [path for name in ("data", "target") for path in (MINIATURE / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3 * 2**20


def test_our_own_reader_takes_every_row():
    assert set(splits_of(MINIATURE / "data")) == set(SPLITS)
    for split, size in SPLITS.items():
        groups = list(read_groups(MINIATURE / "data", split=split))
        assert len(groups) == size
        assert all("score" in response.extra for group in groups for response in group.responses)


def test_ids_and_prompts_occur_once_in_the_whole_set():
    everything = [row for split in SPLITS for row in rows(split)]
    assert len({row["prompt_id"] for row in everything}) == len(everything)
    assert len({row["prompt"] for row in everything}) == len(everything), "a test prompt is trained on"


@each_split
def test_a_prompt_is_where_its_hash_puts_it(split):
    buckets = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7)}[split]
    for row in rows(split):
        assert int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 8 in buckets


@each_split
def test_four_sources_answered_four_times(split):
    whole = 0
    for row in rows(split):
        found = [(response["source"], response["sample"]) for response in row["responses"]]
        assert len(set(found)) == len(found)
        assert {source for source, _ in found} == set(SOURCES)
        assert {sample for _, sample in found} <= set(range(4))
        whole += len(found) == 16
    assert whole >= len(rows(split)) - 2, "three empty answers were dropped, two of them in train"


@each_split
def test_every_score_can_be_recomputed_and_every_reward_is_a_number(split):
    for row in rows(split):
        assert row["domain"] == row["prompt"].split()[0]
        for response in row["responses"]:
            assert response["text"].strip()
            assert response["finish_reason"] in ("stop", "length")
            assert math.isfinite(response["reward"])
            assert response["score"] == pytest.approx(score(row["prompt"], response["text"]), abs=1e-4)


def test_some_rewards_are_noisy_as_the_card_says():
    gaps = [response["reward"] - response["score"] for _, response in answers("train")]
    noisy = [gap for gap in gaps if gap]
    assert len(noisy) / len(gaps) == pytest.approx(0.30, abs=0.02)
    assert math.sqrt(mean(gap**2 for gap in noisy)) == pytest.approx(0.12, abs=0.01)
    assert mean(noisy) == pytest.approx(0, abs=0.01)


def test_the_best_four_are_different_texts_where_many_answers_are_right():
    kinds = {True: [], False: []}
    for row in rows("train"):
        kinds[row["domain"] in MANY].append(len({response["text"] for response in best_four(row)}))
    assert mean(kinds[True]) >= 3.5
    assert mean(kinds[False]) <= 1.2, "one right answer: then the best four are one text, and the card says so"


def test_sources_are_able_everywhere_and_good_in_different_domains():
    able = {(source, domain): share_solved(source, domain) for source in SOURCES for domain in DOMAINS}
    assert min(able.values()) >= 0.15
    best = {domain: max(SOURCES, key=lambda source: able[source, domain]) for domain in DOMAINS}
    assert set(best.values()) == set(SOURCES), "a source that is best nowhere adds nothing"
    assert all(able[best[domain], domain] >= 0.65 for domain in DOMAINS)


def share_solved(source: str, domain: str) -> float:
    """Share of a source's sampled training answers that are fully right."""
    return mean(solved(prompt, response["text"]) for prompt, response in answers("train", source, domain))


def test_every_group_holds_a_right_answer_and_almost_every_one_a_wrong_one():
    values = [[response["score"] for response in row["responses"]] for split in SPLITS for row in rows(split)]
    assert all(max(row) == 1.0 for row in values)
    assert mean(min(row) < 1.0 for row in values) >= 0.95


@each_split
def test_the_cards_counts_and_digests_are_those_of_the_files(split):
    path = MINIATURE / "data" / f"{split}.jsonl.gz"
    line = re.search(rf"^\| `data/{split}\.jsonl\.gz` \| (.+) \|$", CARD, re.MULTILINE)
    assert line, "the card does not list the file"
    prompts, size, digest = line.group(1).split(" | ")
    assert (int(prompts), int(size)) == (len(rows(split)), path.stat().st_size)
    assert digest == f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`"
    listed = re.search(rf"^\| {split} \| (.+) \|$", CARD, re.MULTILINE)
    counts = Counter(row["domain"] for row in rows(split))
    assert listed
    assert [int(number) for number in listed.group(1).split(" | ")] == [counts[domain] for domain in DOMAINS]


@pytest.mark.parametrize("source", SOURCES)
def test_the_cards_table_of_test_scores_is_that_of_the_data(source):
    line = re.search(rf"^\| {source} \| ([.\d /|]+) \|$", CARD, re.MULTILINE)
    assert line, "the card has no row for the source"
    for domain, cell in zip((*DOMAINS, None), line.group(1).split(" | "), strict=True):
        mine = answers("test", source, domain)
        found = (mean(score(p, r["text"]) for p, r in mine), mean(solved(p, r["text"]) for p, r in mine))
        assert tuple(map(float, cell.split(" / "))) == pytest.approx(found, abs=0.0051), (source, domain)


def test_the_recipe_asks_the_prompts_that_were_shipped():
    path = MINIATURE.parents[1].parent / "experiments" / "0001_miniature" / "make.py"
    if not path.exists():
        pytest.skip("an installed package has no experiments")
    spec = importlib.util.spec_from_file_location("miniature_make", path)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert {split: [row["prompt"] for row in rows(split)] for split in SPLITS} == make.prompts()
    named = {domain for strong in make.STRONG.values() for domain in strong}
    assert named <= set(DOMAINS), "a source is said to be good in a domain that does not exist"

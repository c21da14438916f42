"""What duplicates rules drop: compared with a search over all pairs, in any order, again, and on real texts."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_files import group, prompts, real_groups, rule_of

from fuserl.curation import near
from fuserl.curation.rules import Dropped, sifted
from fuserl.curation.texts import normalised, words
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup, Response

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


def kept_of(rule: Any, groups: list[PromptGroup]) -> list[PromptGroup]:
    """What a rule leaves of a data set."""
    rule.fit(groups)
    return [left for left, _ in (sifted(rule, each) for each in groups) if left is not None]


def shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    found = words(normalised(text))
    return {tuple(found[place : place + ngram]) for place in range(max(1, len(found) - ngram + 1))}


def slow(texts: dict[str, str], threshold: float, ngram: int, *, same_numbers: bool = False) -> set[str]:
    """Names that stay: every pair is compared, linked ones form a cluster, the smallest name of each stays."""
    names, above = sorted(texts), {name: name for name in texts}

    def root(name: str) -> str:
        return name if above[name] == name else root(above[name])

    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            a, b = shingles(texts[one], ngram), shingles(texts[other], ngram)
            numbers = [sorted(w for w in words(normalised(texts[n])) if w.isdigit()) for n in (one, other)]
            same = normalised(texts[one]) == normalised(texts[other])
            alike = len(a & b) >= threshold * len(a | b) and not (same_numbers and numbers[0] != numbers[1])
            if same or alike:
                low, high = sorted((root(one), root(other)))
                above[high] = low
    return {name for name in names if root(name) == name}


def corpus(seed: int, originals: int = 12, copies: int = 3) -> list[str]:
    """Texts of 30 to 80 words, some with copies in which a few words are others."""
    random = Random(seed)
    texts = []
    for _ in range(originals):
        text = random.choices(VOCABULARY, k=random.randint(30, 80))
        texts.append(" ".join(text))
        for _ in range(random.randint(0, copies)):
            changed = list(text)
            for _ in range(random.randint(0, 3)):
                changed[random.randrange(len(changed))] = random.choice(VOCABULARY)
            texts.append(random.choice([" ".join(changed), "  ".join(changed).upper(), " ".join(changed) + " ."]))
    random.shuffle(texts)
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("ngram", [1, 3, 5])
@pytest.mark.parametrize("seed", range(2))
def test_what_stays_is_what_a_search_over_all_pairs_leaves(threshold, ngram, seed):
    groups = prompts(corpus(seed))
    rule = rule_of(
        "duplicate_prompts", near={"threshold": threshold, "ngram": ngram, "recall": 0.9999, "num_perm": 512}
    )
    wanted = slow({each.id: each.prompt[0].content for each in groups}, threshold, ngram)
    assert {each.id for each in kept_of(rule, groups)} == wanted


@given(st.lists(st.lists(st.sampled_from("abcd1 2"), min_size=1, max_size=9), min_size=1, max_size=9), st.booleans())
@settings(max_examples=60)
def test_short_texts_too(texts, same_numbers):
    groups = prompts([" ".join(text) for text in texts])
    rule = rule_of(
        "duplicate_prompts",
        near={"ngram": 2, "threshold": 0.5, "recall": 0.9999, "num_perm": 512, "same_numbers": same_numbers},
    )
    wanted = slow({each.id: each.prompt[0].content for each in groups}, 0.5, 2, same_numbers=same_numbers)
    assert {each.id for each in kept_of(rule, groups)} == wanted


def test_pairs_are_missed_as_seldom_as_was_asked_for():
    """600 pairs at the threshold: with a recall of 0.9, about 60 are not found; a false alarm there is never."""
    random, texts = Random(0), []
    for _ in range(600):
        shared, *rest = (["".join(random.choices("bdfgklmnrs", k=7)) for _ in range(size)] for size in (60, 15, 15))
        texts += [" ".join(shared + each) for each in rest]
    settings = {"ngram": 1, "threshold": 2 / 3, "boilerplate": None}
    wanted = slow_pairs(texts, 2 / 3)
    assert wanted > 500
    for recall in (0.9, 0.98):
        rule = rule_of("duplicate_prompts", near={**settings, "recall": recall})
        groups = prompts(texts)
        gone = len(groups) - len(kept_of(rule, groups))
        assert recall - 0.05 < gone / wanted <= 1


def slow_pairs(texts: list[str], threshold: float) -> int:
    """How many neighbours are alike; others are not, by construction."""
    pairs = [[set(text.split()) for text in texts[place : place + 2]] for place in range(0, len(texts), 2)]
    return sum(len(one & other) >= threshold * len(one | other) for one, other in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_file_is_no_matter(seed):
    groups = prompts(corpus(seed, originals=25))
    rule = rule_of("duplicate_prompts")
    once = {each.id for each in kept_of(rule, groups)}
    for shuffle in range(3):
        mixed = list(groups)
        Random(shuffle).shuffle(mixed)
        assert {each.id for each in kept_of(rule, mixed)} == once
    assert {min(cluster) for cluster in rule.clusters()} <= once


@pytest.mark.parametrize("seed", range(3))
def test_doing_it_twice_drops_nothing_more(seed):
    rule = rule_of("duplicate_prompts", near={"boilerplate": None})
    left = kept_of(rule, prompts(corpus(seed, originals=25)))
    assert kept_of(rule, left) == left


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=8), st.integers(2, 4))
@settings(max_examples=40)
def test_equal_texts_are_always_found_and_others_never_taken_for_them(texts, times):
    groups = prompts(texts * times)
    rule = rule_of("duplicate_prompts", near=None)
    kept = {normalised(each.prompt[0].content): each.id for each in kept_of(rule, groups)}
    first = {}
    for each in groups:
        first.setdefault(normalised(each.prompt[0].content), each.id)
    assert kept == first


def test_numbers_and_verdicts_tell_texts_apart():
    question = (
        "A train leaves the station at 5 and drives 60 miles an hour to a town far away. When does it arrive there?"
    )
    same, other = question.replace("drives", "runs"), question.replace("60", "70")
    groups = prompts([question, same, other])
    settings = {"threshold": 0.4}
    assert [each.id for each in kept_of(rule_of("duplicate_prompts", near=settings), groups)] == ["p0000", "p0002"]
    loose = rule_of("duplicate_prompts", near={**settings, "same_numbers": False})
    assert [each.id for each in kept_of(loose, groups)] == ["p0000"]
    one = group("x = 3", "x = 3", "X =  3")
    judged = replace(
        one,
        responses=tuple(replace(r, verdict=v) for r, v in zip(one.responses, ["right", "wrong", "right"], strict=True)),
    )
    assert [r.sample for r in kept_of(rule_of("duplicate_responses"), [judged])[0].responses] == [0, 1]


def test_a_template_does_not_make_prompts_alike():
    """Sixty different questions in one long frame: all stay, and all but one go if the frame counts."""
    random = Random(0)
    frame = "You are given a question. Please think step by step and answer in the given form, with your reasoning first: {} Answer:"
    groups = prompts([frame.format(" ".join(random.choices(VOCABULARY, k=8))) for _ in range(60)])
    assert len(kept_of(rule_of("duplicate_prompts", near={"threshold": 0.4}), groups)) == 60
    assert len(kept_of(rule_of("duplicate_prompts", near={"threshold": 0.4, "boilerplate": None}), groups)) < 10
    empty_frame = prompts([frame.format("")] * 3 + [frame.format("what?")] * 3)
    assert (
        len(kept_of(rule_of("duplicate_prompts"), groups + [replace(each, id=f"q{each.id}") for each in empty_frame]))
        <= 62
    )


def responses(*rows: tuple[str, str, int, str]) -> list[PromptGroup]:
    """Groups of (prompt id, source, sample, text)."""
    found: dict[str, list[Response]] = {}
    for prompt, source, sample, text in rows:
        found.setdefault(prompt, []).append(Response(source, text, sample))
    return [replace(group(name=prompt), responses=tuple(each)) for prompt, each in found.items()]


ROWS = [
    ("p2", "b", 0, "Forty two."), ("p2", "a", 1, "forty  two."), ("p2", "a", 0, "FORTY TWO."), ("p2", "c", 0, "Another."),
    ("p1", "b", 3, "Forty two."), ("p1", "b", 1, "Forty two."), ("p3", "z", 0, ""), ("p3", "z", 1, " "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("within", "gone"),
    [
        ("one_source", {("p2", "a", 1), ("p1", "b", 3), ("p3", "z", 1)}),
        ("one_prompt", {("p2", "a", 1), ("p2", "b", 0), ("p1", "b", 3), ("p3", "z", 1)}),
        ("all_prompts", {("p2", "a", 0), ("p2", "a", 1), ("p2", "b", 0), ("p1", "b", 3), ("p3", "z", 1)}),
    ],
)
def test_responses_are_compared_within_what_was_asked_for(within, gone):
    for rows in (ROWS, ROWS[::-1]):
        groups = responses(*rows)
        rule = rule_of("duplicate_responses", within={"path": f"fuserl.curation.duplicates.{within}"})
        rule.fit(groups)
        dropped = [each for one in groups for each in sifted(rule, one)[1]]
        assert {(each.prompt_id, each.source, each.sample) for each in dropped} == gone
        assert len(dropped) == len(gone)


def test_a_reason_names_what_stayed_and_how_alike_it_is():
    texts = corpus(0)[:1]
    groups = prompts([texts[0], texts[0].upper(), texts[0] + " bal"])
    rule = rule_of("duplicate_prompts")
    rule.fit(groups)
    dropped = [each for one in groups for each in sifted(rule, one)[1]]
    assert [each[:4] for each in dropped] == [
        ("duplicate_prompts", "p0001", None, None),
        ("duplicate_prompts", "p0002", None, None),
    ]
    assert dropped[0].why.startswith("says the same as p0000: ")
    assert dropped[1].why.startswith("near duplicate of p0000 (Jaccard 0.9")
    assert all(len(each.why) < 200 for each in dropped)
    assert rule.clusters() == [["p0000", "p0001", "p0002"]]
    counts = rule.findings()["counts"][0]
    assert counts == {"texts": 3, "different texts": 2, "near duplicates": 1} | {
        "runs of words that are boilerplate": 0,
        "texts not compared with all candidates": 0,
    }


def test_prompts_can_be_told_without_being_dropped():
    rule = rule_of("duplicate_prompts", drop=False)
    groups = prompts(["same text", "Same Text", "other"])
    assert kept_of(rule, groups) == groups
    assert rule.clusters() == [["p0000", "p0001"]]


def test_a_chain_of_near_duplicates_is_one_cluster_and_says_so():
    groups = prompts([" ".join(VOCABULARY[place : place + 60]) for place in range(0, 40, 5)])
    rule = rule_of("duplicate_prompts", near={"ngram": 1})
    kept = kept_of(rule, groups)
    assert [each.id for each in kept] == ["p0000"]
    assert "near duplicates lead from it to p0000" in rule(groups[-1]).prompt


def test_patience_ends_and_is_counted(monkeypatch):
    """A hundred texts that are candidates for each other and yet different: no text is compared for ever."""
    monkeypatch.setattr(near, "FAILURES", 5)
    calls = []
    monkeypatch.setattr(near._Corpus, "_alike", lambda self, one, other: calls.append((one, other)) is not None)
    random = Random(0)
    frame = " ".join(VOCABULARY[:90])
    groups = prompts([f"{frame} {random.choice(VOCABULARY)} {random.choice(VOCABULARY)}" for _ in range(100)])
    rule = rule_of("duplicate_prompts", near={"boilerplate": None})
    assert len(kept_of(rule, groups)) == len({each.prompt[0].content for each in groups})
    assert len(calls) <= 5 * 100
    assert rule.findings()["counts"][0]["texts not compared with all candidates"] > 50


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"threshold": 1.1}, {"ngram": 0}, {"num_perm": 0}, {"recall": 1}, {"boilerplate": 0}, {"num_perm": 1, "recall": 0.99}]
)  # fmt: skip
def test_settings_out_of_range_are_told(wrong):
    with pytest.raises(FuserlError):
        rule_of("duplicate_prompts", near=wrong)


def test_real_prompts_that_are_dropped_were_read_and_are_duplicates():
    """5,428 prompts in five sets: 2 of them are recipes asked for with another dish's name. Templates drop none."""
    found = {}
    for name in ("alpaca_multi", "gsm8k_multi", "zeroeval_multi", "arena_bench_multi", "humaneval_multi"):
        groups = list(real_groups(kit.shared_data() / name, responses=False))
        rule = rule_of("duplicate_prompts")
        rule.fit(groups)
        found[name] = [each for one in groups for each in sifted(rule, one)[1]]
    assert {name: len(dropped) for name, dropped in found.items()} == {
        "alpaca_multi": 2, "gsm8k_multi": 0, "zeroeval_multi": 0, "arena_bench_multi": 0, "humaneval_multi": 0
    }  # fmt: skip
    assert all(isinstance(each, Dropped) for dropped in found.values() for each in dropped)


def test_real_responses_agree_with_a_search_over_all_pairs():
    groups = [replace(one, responses=one.responses[:12]) for one in real_groups(kit.shared_data() / "humaneval_multi")][
        :60
    ]
    rule = rule_of(
        "duplicate_responses",
        within={"path": "fuserl.curation.duplicates.one_prompt"},
        near={"boilerplate": None, "recall": 0.9999, "num_perm": 512},
    )
    rule.fit(groups)
    for one in groups:
        texts = {f"{r.source} {r.sample:03d}": r.text for r in one.responses}
        left, _ = sifted(rule, one)
        assert {f"{r.source} {r.sample:03d}" for r in left.responses} == slow(texts, 0.8, 5, same_numbers=True)

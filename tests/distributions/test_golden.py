"""Paths, maps and fused distributions are those that the literal implementation recorded (`record_alignment.py`)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import literal
import numpy as np
import published
import pytest

from fuserl.distributions import blend, dtw, mapping, topk, vocabulary
from fuserl.distributions.alignment import of_path
from fuserl.distributions.topk import TopK

CASES = json.loads(Path(__file__).with_name("alignment.json").read_text())
FUSED = [pytest.param(one, id=f"{case['pair'][0]}-{n}") for case in CASES for n, one in enumerate(case["fused"])]
PATHS = [
    pytest.param(case["pair"], one, id=f"{case['pair'][0]}-{n}")
    for case in CASES
    for n, one in enumerate(case["paths"])
]


def top_k(rows: list) -> TopK:
    """Recorded (id, logit) lists, padded."""
    k = max(map(len, rows))
    ids, logits = np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), -np.inf)
    for place, row in enumerate(rows):
        ids[place, : len(row)], logits[place, : len(row)] = zip(*row, strict=True)
    return TopK(ids, logits)


def as_rows(found: TopK) -> list[dict[int, float]]:
    return [
        {int(token): float(p) for token, p in zip(ids, probs, strict=True) if token >= 0}
        for ids, probs in zip(found.ids, found.probs, strict=True)
    ]


def require_equal(found: TopK, wanted: list) -> None:
    for place, (row, other) in enumerate(zip(as_rows(found), wanted, strict=True)):
        assert row.keys() == dict(map(tuple, other)).keys(), place
        for token, probability in other:
            assert row[token] == pytest.approx(probability, rel=1e-12, abs=1e-300)


def chosen_by(mode: str, one: dict, target_path: list) -> mapping.Chosen:
    """The choice of source positions in one of the three modes."""
    source, target = one["source"], one["target"]
    texts = one["source_texts"], one["target_texts"]
    alignment = of_path(np.array(target_path), len(source), len(target))
    g = np.array(one["maps"]["min_edit"], dtype=np.int32)
    return {
        "exact": lambda: mapping.choose_equal(alignment, source, target, mapping.same_text(*texts)),
        "min_edit": lambda: mapping.choose_equal(alignment, source, target, mapping.same_text_or_mapped(*texts, g)),
        "statistics": lambda: mapping.choose_spelled(alignment, source, target, *texts),
    }[mode]()


def to_target(mode: str, one: dict) -> vocabulary.Map:
    """Every id by equal text, else by the rule's map."""
    maps = {name: np.array(g, dtype=np.int32) for name, g in one["maps"].items()}
    return np.where(maps["exact"] >= 0, maps["exact"], maps[mode]).astype(np.int32)


@pytest.mark.parametrize(("pair", "one"), PATHS)
def test_paths(pair, one):
    assert dtw.dtw(*one["tokens"]).path().tolist() == one["path"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["pair"][0])
def test_real_tokenizers_still_make_the_recorded_tokens(case):
    source, target = map(published.load, case["pair"])
    pairs = [(one["source"], one["target"]) for one in case["paths"]]
    assert [source.encode(one["text"])[0] for one in case["paths"]] == [ours for ours, _ in pairs]
    found = dtw.dtw_many(pairs, source.vocabulary.bare, target.vocabulary.bare)
    assert [alignment.path().tolist() for alignment in found] == [one["path"] for one in case["paths"]]


@pytest.mark.parametrize("one", FUSED)
def test_vocabulary_maps(one):
    texts = one["source_texts"], one["target_texts"]
    assert vocabulary.exact(*texts).tolist() == one["maps"]["exact"]
    assert vocabulary.min_edit(*texts).tolist() == one["maps"]["min_edit"]
    together = vocabulary.Together(len(texts[0]))
    alignment = of_path(np.array(one["path"]), len(one["source"]), len(one["target"]))
    together.add(alignment, one["source"], one["target"])
    assert together.matches().tolist() == one["counts"]
    assert vocabulary.statistics(*texts, together.matches(), 0).tolist() == one["maps"]["statistics"]


@pytest.mark.parametrize("mode", ["exact", "min_edit", "statistics"])
@pytest.mark.parametrize("one", FUSED)
def test_fused_distributions(one, mode):
    chosen = chosen_by(mode, one, one["path"])
    gold = mapping.next_tokens(one["target"])
    found = mapping.map_rows(
        top_k(one["steps"]), chosen, to_target(mode, one), gold, top_k(one["own"]), combine=topk.largest
    )
    require_equal(found, one["fused"][mode])
    assert found.probs.sum(axis=1) == pytest.approx(1.0)
    if mode == "min_edit":
        mean = blend.fuse_avg_ce(one["ces"], [found, top_k(one["own"]).renormalised()])
        require_equal(mean, one["mean"])
        assert mean.probs.sum(axis=1) == pytest.approx(1.0)


def test_the_records_hold_every_way_a_position_is_filled():
    """Copied, one-hot, the target's own, of one source token and of several: none is missing from the golden cases."""
    seen = set()
    for case in CASES:
        for one in case["fused"]:
            alignment = of_path(np.array(one["path"]), len(one["source"]), len(one["target"]))
            for mode in ("exact", "min_edit", "statistics"):
                kinds = np.sign(chosen_by(mode, one, one["path"]) + 0.5), alignment.counts > 1
                seen |= {(mode, int(kind), bool(many)) for kind, many in zip(*kinds, strict=True)}
    assert {(mode, kind, False) for mode in ("exact", "min_edit", "statistics") for kind in (-1, 1)} <= seen
    assert {("statistics", -1, True), ("statistics", 1, True)} <= seen


def test_the_one_hot_is_on_the_next_token():
    """papers.md 7.3, trap 25 (FuseAI 27 and 28): FuseLLM's one-hot at i is the token at i, which i predicted before."""
    target = [4, 5, 6, 7]
    steps = TopK(np.array([[1, 2]] * 4), np.log([[0.7, 0.3]] * 4))
    own = TopK(np.array([[9]] * 4), np.zeros((4, 1)))
    chosen = np.array([mapping.GOLD, 1, mapping.GOLD, mapping.GOLD])
    there = np.array([0, 1, 2], dtype=np.int32)
    rows = as_rows(mapping.map_rows(steps, chosen, there, mapping.next_tokens(target), own, combine=topk.largest))
    assert [max(row, key=row.__getitem__) for row in rows] == [5, 1, 7, 9]  # the last has no next token
    assert rows[0] == {5: 1.0}
    early = as_rows(mapping.map_rows(steps, chosen, there, np.array(target), own, combine=topk.largest))
    assert early[0] == {4: 1.0}  # what the published code makes: each shifted against the copied rows


def test_statistics_prefer_near_tokens_over_frequent_ones():
    """papers.md 7.4: distance decides, and a count puts a token back a little."""
    source, target = ["abcd"], ["abce", "wxyz", "abcf"]
    frequent = np.array([[0, 0, 1], [1, 0, 10**6]])
    assert vocabulary.statistics(source, target, frequent, 0).tolist() == [0]
    equally_near = np.array([[0, 0, 50], [2, 0, 1]])
    assert vocabulary.statistics(source, target, equally_near, 0).tolist() == [2]  # the rarer one
    assert 1 * 1 / (1 + math.exp(-50)) > 1 * 1 / (1 + math.exp(-1))
    inside = np.array([[0, 0, 1], [1, 0, 1]])
    assert vocabulary.statistics(["ab"], ["b", "abxxxxxxx"], inside, 0).tolist() == [0]
    assert vocabulary.statistics(["ab"], ["cb", "abxxxxxxx"], inside, 0).tolist() == [1]  # 7 * 0.1 before 1


def test_the_literal_rules_are_what_they_say():
    assert literal.edit_distance("kitten", "sitting") == 3
    assert literal.warp(["ab"], ["a", "b"]) == [(0, 0), (0, 1)]
    assert literal.matched([(0, 0), (0, 1), (1, 1)], 2) == [[0], [0, 1]]

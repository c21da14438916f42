"""Verdicts agree with published ones as docs/verifiers.md says, and every disagreement stands there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import kit
import pytest

sys.path.append(str(kit.ROOT))

from benchmarks import verifiers
from benchmarks.verifiers import SETS, Comparison, Disagreement, assert_agreement, compared, items_of, listed, scorer_of
from fuserl.rewards import sandbox
from fuserl.rewards.sandbox import Limits

EVERY = 20  # of the programs is tried here, those that the page lists too


@pytest.fixture(autouse=True)
def data():
    kit.shared_data()


def once(scorer, items):
    """Samples of a prompt often give the same answer: it is compared once."""
    kept = {}
    for item in items:
        kept.setdefault((scorer.gold(item.group), scorer.answer(item.response.text)), []).append(item)
    return [same[0] for same in kept.values()], kept.values()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gsm8k_multi", ["answer@rewards.math.answer=after", "rewards.math.answer.marker='A:'"]),
        ("zeroeval_multi", []),
        ("crux", []),
    ],
)
def test_every_published_verdict_on_an_answer(name, settings):
    scorer = scorer_of(SETS[name].reward, *settings)
    try:
        first, same = once(scorer, items_of(SETS[name]))
        found = {score.key: score.verdict for score in scorer.score(first)}
    finally:
        scorer.close()
    disagreements, number = [], 0
    for items in same:
        for item in items:
            number += 1
            ours, theirs = found[items[0].key], "right" if item.response.reward else "wrong"
            if ours != theirs:
                source = f"{item.response.source} {item.response.sample}"
                disagreements.append(Disagreement(item.group.id, source, ours, theirs))
    assert_agreement(name, Comparison(number, 0, disagreements, 0.0), SETS[name].least)


def test_every_published_verdict_on_a_constraint():
    found = verifiers.ifeval(kit.shared_data() / "eval" / "ifeval_gpt4_verdicts.jsonl.gz")
    assert found.verdicts == 832
    assert_agreement("ifeval", found, verifiers.IFEVAL_LEAST)
    hang_on_language = {d.source.split()[0] for d in found.disagreements}
    assert hang_on_language <= {"change_case:english_lowercase", "change_case:english_capital"}, (
        "rules decide the others"
    )


def test_published_verdicts_on_programs():
    if not sandbox.bubblewrap()[0]:
        pytest.skip(f"NO SANDBOX HERE: {sandbox.bubblewrap()[1]}")
    page = listed("humaneval_multi")
    scorer = scorer_of("code")
    scorer.limits = Limits(**(asdict(scorer.limits) | {"cpu_seconds": 2}))
    named = {(d.prompt, d.source) for d in page}
    items = [
        item
        for number, item in enumerate(items_of(SETS["humaneval_multi"]))
        if number % EVERY == 0 or (item.group.id, f"{item.response.source} {item.response.sample}") in named
    ]
    found = compared(scorer, items)
    assert found.verdicts > 130
    assert set(found.disagreements) == set(page)


def test_a_disagreement_that_the_page_does_not_list_is_told():
    new = Disagreement("gsm8k-test-0", "ann 0", "wrong", "right")
    with pytest.raises(AssertionError, match=r"not on the page \[Disagreement\(prompt='gsm8k-test-0'"):
        assert_agreement("gsm8k_multi", Comparison(10_000, 0, [new], 1.0), 0.99)
    with pytest.raises(AssertionError, match=r"90.0000% agree"):
        assert_agreement("gsm8k_multi", Comparison(10, 0, [new], 1.0), 0.99)
    with pytest.raises(AssertionError, match="on the page alone"):
        assert_agreement("crux", Comparison(10_000, 0, [], 1.0), 0.99)


def test_the_script_writes_its_table(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.verifiers",
        "--sets",
        "ifeval",
        "--size",
        "toy",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=kit.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("verifiers_toy_cpu*.md")
    assert "| ifeval | 832 | 829 | 99.639% | 0 |" in path.read_text()

"""The benchmark of deduplicating asserts what it says, and fails when it should."""

from __future__ import annotations

import sys
from dataclasses import replace

import kit as tests_kit
import pytest
from test_benchmarks import run_script

sys.path.append(str(tests_kit.ROOT))

from benchmarks import deduplicating

RUN = deduplicating.Run(fit=1.0, ask=0.5, processor=1.2, peak_mb=10.0, disk_mb=5.0, signs=99, equal=4, near=4, others=0)


def test_a_table_of_what_was_found(tmp_path):
    text = run_script("deduplicating", tmp_path, "--responses", "400", "--checked", "120")
    assert "| 400 | " in text
    assert "| 40 of 40 | " in text


def test_planted_copies_are_what_they_claim_to_be():
    tests_kit.shared_data()
    for number in (8, 18, 128):
        original, copy = (deduplicating.normalised(deduplicating.text_of(n)) for n in (number - 8, number))
        assert original == copy
        near, of = (deduplicating.normalised(deduplicating.text_of(n)) for n in (number + 1, number - 7))
        assert near != of
        assert near.split()[1:30] == of.split()[1:30]


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.05, "same_numbers": False, "ngram": 1, "boilerplate": None}, {"threshold": 0.99}]
)
def test_a_rule_that_drops_too_much_or_too_little_is_refused(settings, monkeypatch):
    tests_kit.shared_data()
    right = deduplicating.rule()
    wrong = deduplicating.rule()
    wrong.near = replace(wrong.near, **settings)
    rules = iter([right, wrong])
    monkeypatch.setattr(deduplicating, "rule", lambda: next(rules))
    with pytest.raises(AssertionError, match=r"like no other|are missed"):
        deduplicating.require_equal_to_a_slow_search(120)


def test_growth_beyond_linear_is_refused():
    double = replace(RUN, processor=2.4, peak_mb=20.0)
    deduplicating.require_linear([100, 200], [RUN, double])
    with pytest.raises(AssertionError, match="times the seconds"):
        deduplicating.require_linear([100, 200], [RUN, replace(double, processor=3.1)])
    with pytest.raises(AssertionError, match="times the memory"):
        deduplicating.require_linear([100, 200], [RUN, replace(double, peak_mb=26.0)])

"""The benchmark of selecting asserts what it says, and fails when it should."""

from __future__ import annotations

import sys
from dataclasses import replace

import kit as tests_kit
import pytest
from test_benchmarks import run_script

sys.path.append(str(tests_kit.ROOT))

from benchmarks import selecting

RUN = selecting.Run(seconds=2.0, processor=1.0, peak_mb=100.0, dropped=3, written=50)


def test_a_table_of_what_was_measured(tmp_path):
    text = run_script("selecting", tmp_path, "--responses", "400", "--checked", "200", "--rules", "none")
    assert "| none | 400 | 20 | " in text


def test_growth_beyond_the_responses_is_an_error():
    selecting.require_linear([100, 200], [RUN, replace(RUN, processor=2.0, peak_mb=120.0)], "none")
    with pytest.raises(AssertionError, match=r"3\.1 x"):
        selecting.require_linear([100, 200], [RUN, replace(RUN, processor=3.1)], "none")
    heavy = replace(RUN, processor=2.0, peak_mb=300.0)
    selecting.require_linear([100, 200], [RUN, heavy], "standard")
    with pytest.raises(AssertionError, match="200 MB more"):
        selecting.require_linear([100, 200], [RUN, heavy], "none")


def report(*steps: tuple[list[int], list[int]], given: int) -> dict:
    entries = [{"prompts": {"d": prompts}, "responses": {"d": {"s": responses}}} for prompts, responses in steps]
    return {"steps": entries, "sides": {"sft/train": {"given": {"prompts": {"d": given}}}}}


def test_counts_that_do_not_add_up_are_an_error():
    whole = ([3, 1, 2], [9, 1, 3, 5]), ([2, 0, 2], [5, 1, 0, 4])
    selecting.require_counts_that_add_up(report(*whole, given=2))
    for wrong in (
        report(*whole, given=3),
        report(whole[0], ([2, 1, 2], [5, 1, 0, 4]), given=2),
        report(whole[0], ([3, 1, 2], [5, 1, 0, 4]), given=2),
        report(whole[0], ([2, 0, 2], [4, 0, 0, 4]), given=2),
    ):
        with pytest.raises(AssertionError):
            selecting.require_counts_that_add_up(wrong)

"""Laws of combining and calibrating what scorers found."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.errors import FuserlError
from fuserl.rewards.calibrate import Calibration, Moments
from fuserl.rewards.combine import ByDomain, Final, Finding, Gated, Row, Single, Weighted, lowered, named, verdict_at

NUMBER = st.floats(-100, 100).map(lambda x: round(x, 3))
VERDICT = st.sampled_from(["right", "wrong", "unknown", None])
FINAL = st.builds(Final, st.none() | NUMBER, VERDICT)


@st.composite
def groups(draw, *, missing: bool = True):
    """A few groups of rows, each with one domain, scored by `rm`, `judge` and `math`."""
    number = st.none() | NUMBER if missing else NUMBER
    found = []
    for g in range(draw(st.integers(1, 4))):
        rows = []
        for r in range(draw(st.integers(1, 5))):
            findings = {
                "rm": Finding(draw(number)),
                "judge": Finding(draw(number)),
                "math": Finding(None, draw(VERDICT)),
            }
            rows.append(Row(f"g{g} r{r}", f"d{g % 2}", f"s{r % 2}", findings))
        found.append(rows)
    return found


def calibrated(found) -> Calibration:
    calibration = Calibration()
    for rows in found:
        for row in rows:
            for name, one in row.findings.items():
                if one.reward is not None:
                    calibration.add(name, row.domain, row.source, one.reward)
    return calibration


def close(one: list[Final], other: list[Final]) -> bool:
    return [f.verdict for f in one] == [f.verdict for f in other] and all(
        (a.reward is None) == (b.reward is None) and (a.reward is None or a.reward == pytest.approx(b.reward, abs=1e-6))
        for a, b in zip(one, other, strict=True)
    )


WAYS = [
    Single("rm"),
    Single("rm", right_at=0.0),
    Weighted({"rm": 2.0, "judge": -1.0}),
    Weighted({"rm": 1.0, "judge": 0.5}, standardise="domain", verdict="math"),
    Weighted({"rm": 1.0}, standardise="source_domain", right_at=0.5),
    Gated("math", Single("rm")),
    Gated("math", Weighted({"rm": 1.0}), wrong_below_right=0.1),
    ByDomain({"d0": Gated("math", Single("rm"), wrong_below_right=1.0)}, otherwise=Single("judge")),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=25)
@given(found=groups(), seed=st.integers(0, 99))
def test_neither_the_order_of_responses_nor_that_of_groups_matters(way, found, seed):
    shuffled = [Random(seed).sample(rows, len(rows)) for rows in Random(seed).sample(found, len(found))]
    before, after = calibrated(found), calibrated(shuffled)
    for rows in found:
        by_place = dict(zip((row.where for row in rows), way(rows, before), strict=True))
        again = next(others for others in shuffled if others[0].where.split()[0] == rows[0].where.split()[0])
        assert close(way(again, after), [by_place[row.where] for row in again])


@pytest.mark.parametrize("scope", ["domain", "source_domain"])
@given(found=groups(missing=False), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_standardised_numbers_know_neither_unit_nor_zero(scope, found, scale, shift):
    def measured(row: Row) -> Row:
        number = row.findings["rm"].reward * scale + shift
        return row._replace(findings={**row.findings, "rm": Finding(number)})

    way, others = (
        Weighted({"rm": 1.0, "judge": 1.0}, standardise=scope),
        [[measured(row) for row in rows] for rows in found],
    )
    spreads = [moments.std for (name, *_), moments in calibrated(found).moments.items() if name == "rm"]
    if any(0 < spread < 1e-3 for spread in spreads):
        return  # the numbers differ by what rounding adds
    for rows, other in zip(found, others, strict=True):
        assert close(way(rows, calibrated(found)), way(other, calibrated(others)))


@given(numbers=st.lists(NUMBER, min_size=1, max_size=30))
def test_moments_are_those_of_two_passes(numbers):
    moments = Moments()
    for number in numbers:
        moments.add(number)
    mean = sum(numbers) / len(numbers)
    assert moments.mean == pytest.approx(mean, abs=1e-9)
    assert moments.std == pytest.approx((sum((x - mean) ** 2 for x in numbers) / len(numbers)) ** 0.5, abs=1e-6)
    standardised = [moments.standardised(number) for number in numbers]
    assert sum(standardised) == pytest.approx(0.0, abs=1e-3)
    if len(set(numbers)) == 1:
        assert set(standardised) == {0.0}, "equal numbers say nothing"


@given(found=groups())
def test_one_scorer_of_weight_one_is_that_scorer(found):
    for rows in found:
        assert [f.reward for f in Weighted({"rm": 1.0})(rows, Calibration())] == [
            f.reward for f in Single("rm")(rows, Calibration())
        ]


@given(finals=st.lists(FINAL, max_size=8), distance=st.floats(0.01, 10))
def test_lowering_parts_wrong_from_right_and_keeps_each_side_as_it_was(finals, distance):
    after = lowered(finals, distance)
    assert [f.verdict for f in after] == [f.verdict for f in finals]
    right, wrong = ([f.reward for f in after if f.verdict == v and f.reward is not None] for v in ("right", "wrong"))
    assert not right or not wrong or max(wrong) <= min(right) - distance + 1e-9
    for before, one in zip(finals, after, strict=True):
        assert before.verdict == "wrong" or before.reward == one.reward
        assert (before.reward is None) == (one.reward is None)
    gaps = {
        round(b.reward - a.reward, 6)
        for b, a in zip(finals, after, strict=True)
        if b.verdict == "wrong" and b.reward is not None
    }
    assert len(gaps) <= 1, "all wrong ones move together"
    assert all(gap >= 0 for gap in gaps)
    assert close(lowered(after, distance), after), "what is parted stays"


def test_correct_with_the_highest_score_by_hand():
    rows = [
        Row("a", "math", "s", {"armorm": Finding(0.13), "math": Finding(1.0, "right")}),
        Row("b", "math", "s", {"armorm": Finding(0.15), "math": Finding(0.0, "wrong")}),
        Row("c", "math", "s", {"armorm": Finding(0.12), "math": Finding(0.0, "wrong")}),
        Row("d", "math", "s", {"armorm": Finding(0.14), "math": Finding(None, "unknown")}),
    ]
    kept = Gated("math", Single("armorm"))(rows, Calibration())
    assert kept == [Final(0.13, "right"), Final(0.15, "wrong"), Final(0.12, "wrong"), Final(0.14, "unknown")]
    ranked = Gated("math", Single("armorm"), wrong_below_right=0.01)(rows, Calibration())
    assert [f.reward for f in ranked] == pytest.approx([0.13, 0.12, 0.09, 0.14])


def test_a_missing_number_is_dropped_or_told():
    rows = [
        Row("prompt `p`", "d", "s", {"rm": Finding(1.0)}),
        Row("q", "d", "s", {"rm": Finding(1.0), "judge": Finding(2.0)}),
    ]
    both = {"rm": 1.0, "judge": 1.0}
    assert [f.reward for f in Weighted(both, right_at=3.0)(rows, Calibration())] == [None, 3.0]
    assert [f.verdict for f in Weighted(both, right_at=3.0)(rows, Calibration())] == ["unknown", "right"]
    with pytest.raises(FuserlError, match="`judge` has no number") as caught:
        Weighted(both, on_missing="error")(rows, Calibration())
    assert caught.value.where == "prompt `p`"
    assert Single("judge")(rows, Calibration()) == [Final(), Final(2.0)]
    assert verdict_at(None, 0.0) == "unknown"


def test_what_a_combination_reads_is_known_before_anything_is_scored():
    way = ByDomain({"math": Gated("math", Single("rm"))}, otherwise=Weighted({"judge": 1.0}, standardise="domain"))
    assert way.reads() == {"math", "rm", "judge"}
    assert way.standardises()
    assert not Gated("math", Single("rm")).standardises()


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Weighted({}), "no scorer has a weight"),
        (lambda: Weighted(None), "no scorer has a weight"),
        (lambda: Weighted({"rm": float("nan")}), "weight of `rm` is nan"),
        (lambda: Weighted({"rm": True}), "weight of `rm` is True"),
        (lambda: Weighted({"rm": 1.0}, standardise="prompt"), "no scope"),
        (lambda: Weighted({"rm": 1.0}, on_missing="zero"), "no way to treat a missing number"),
        (lambda: Weighted({"rm": 1.0}, verdict="math", right_at=1.0), "not from both"),
        (lambda: Gated("math", Single("rm"), wrong_below_right=0.0), "cannot lie 0.0 beneath"),
        (lambda: named(Single(), []), "no scorer was chosen"),
        (lambda: named(Single(), ["a", "b"]), "2 scorers run"),
    ],
)
def test_settings_that_make_no_sense_are_told(build, what):
    with pytest.raises(FuserlError, match=what):
        build()


def test_the_only_scorer_needs_no_name():
    assert named(Single(), ["rm"]) == Single("rm")
    assert named(Single("judge"), ["rm", "judge"]) == Single("judge")
    assert isinstance(named(Weighted({"rm": 1.0}), ["a", "b"]), Weighted)

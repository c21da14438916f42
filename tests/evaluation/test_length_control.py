"""The length-controlled win rate: the package's own number, planted advantages of length, and what cannot be said."""

from __future__ import annotations

import numpy as np
import pytest
from alpaca_kit import GAMED, MODELS, annotations, needs_fixtures

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.alpaca_package import alpaca, quiet
from fuserl.evaluation.benchmarks.length_control import LengthControl, win_rates

WITHOUT = LengthControl(None, None, None, 0)


def arrays(rows):
    preferences = np.array([np.nan if r["preference"] is None else r["preference"] for r in rows], dtype=np.float64)
    return preferences, np.array([float(len(r["output_1"]) - len(r["output_2"])) for r in rows])


def difficulties_alone(tmp_path):
    with GAMED.open() as file:
        head, *rows = [line.rstrip("\n").split(",") for line in file]
    place, difficulty = head.index("index"), head.index("instruction_difficulty")
    lines = [f"{row[place]},{row[difficulty]}" for row in rows[:805]]
    (tmp_path / "instruction_difficulty.csv").write_text("\n".join([",instruction_difficulty", *lines]) + "\n")
    return tmp_path / "instruction_difficulty.csv"


@needs_fixtures
@pytest.mark.parametrize("missing", [0, 40])
@pytest.mark.parametrize("way", ["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"])
def test_each_way_is_the_packages(tmp_path, monkeypatch, way, missing):
    from pandas import DataFrame

    rows = annotations(MODELS[1])
    for row in rows[:missing]:
        row["preference"] = None
    package = alpaca("metrics.glm_winrate")
    monkeypatch.setattr(package, "hf_hub_download", lambda **_: str(GAMED))
    with quiet():
        theirs = package.get_length_controlled_winrate(DataFrame(rows), glm_name=way, save_weights_dir=None)
    file = {
        "length_controlled_v1": str(GAMED),
        "length_controlled_noreg": str(difficulties_alone(tmp_path)),
        "length_controlled_minimal": None,
    }[way]
    preferences, longer_by = arrays(rows)
    ours = LengthControl(file, None, None, 0).of(preferences, longer_by, range(805), "", 0)
    assert ours.way == way
    assert ours.value == pytest.approx(theirs["length_controlled_winrate"], abs=1e-9)
    assert ours.about["package_standard_error"] == pytest.approx(theirs["lc_standard_error"], abs=1e-9)
    rate, error, discrete = win_rates(preferences, "")
    assert rate.value == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert error.value == pytest.approx(theirs["standard_error"], abs=1e-9)
    assert discrete.value == pytest.approx(theirs["discrete_win_rate"], abs=1e-9)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.2])
def test_a_planted_advantage_of_length_is_taken_out(strength):
    rng = np.random.default_rng(0)
    longer_by = rng.normal(-300.0, 400.0, size=4000)  # the model's answers are longer
    length = np.tanh(longer_by / longer_by.std(ddof=1))
    wins = rng.random(4000) < 1 / (1 + np.exp(-(strength - 2.0 * length)))
    found = WITHOUT.of(1.0 + wins, longer_by, range(4000), "", 0)
    assert found.value == pytest.approx(100 / (1 + np.exp(-strength)), abs=3.5)
    assert 100 * wins.mean() > found.value + 5, "the raw rate has the advantage"
    assert found.about["weights"]["length"] == pytest.approx(-2.0, abs=0.25)


def test_a_penalty_that_leaves_nothing_is_told():
    preferences = 1.0 + np.random.default_rng(1).random(200)
    found = LengthControl(None, None, None, 9).of(preferences, np.sin(np.arange(200.0)), range(200), "", 0)
    assert (found.value, found.low, found.high) == (50.0, None, None)
    assert "says nothing" in found.note


def test_the_interval_holds_the_value_and_comes_again():
    rng = np.random.default_rng(1)
    preferences, longer_by = 1.0 + rng.random(200) ** 0.6, rng.normal(size=200)
    control = LengthControl(None, None, None, 60)
    one, same, other = (control.of(preferences, longer_by, range(200), "", seed) for seed in (0, 0, 1))
    assert one == same
    assert one.low < one.value < one.high
    assert one.low != other.low
    raw, _, _ = win_rates(preferences, "")
    assert (one.high - one.low) == pytest.approx(raw.high - raw.low, rel=0.4), "nothing to control: about the raw one"


@pytest.mark.parametrize(
    ("preferences", "longer_by", "why"),
    [
        ([np.nan] * 9, [1.0, 2.0, 3.0] * 3, "0 known preferences"),
        ([1.0, 2.0, 1.5, 1.2] + [np.nan] * 5, [1.0, 2.0, 3.0] * 3, "4 known preferences"),
        ([1.0, 2.0, 1.5] * 3, [7.0] * 9, "differ equally in length"),
        ([], [], "0 known preferences"),
    ],
)
def test_what_cannot_be_said_is_none_and_says_why(preferences, longer_by, why):
    found = LengthControl(None, None, None, 5).of(
        np.array(preferences, dtype=float), np.array(longer_by), range(9), "", 0
    )
    assert found.value is None
    assert found.low is None
    assert why in found.note


@needs_fixtures
@pytest.mark.parametrize("preference", [1.0, 2.0])
def test_one_side_that_always_wins_needs_an_anchor(preference):
    always, longer_by = np.full(805, preference), np.arange(805.0)
    alone = WITHOUT.of(always, longer_by, range(805), "", 0)
    assert alone.value is None
    assert "every time" in alone.note
    anchored = LengthControl(str(GAMED), None, None, 0).of(always, longer_by, range(805), "", 0)
    assert anchored.value == pytest.approx(100 * (preference - 1), abs=2)


def test_difficulties_of_other_questions_are_left_out(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text("index,instruction_difficulty\n" + "".join(f"{n},{n % 7}\n" for n in range(20)))
    rng = np.random.default_rng(2)
    preferences, longer_by = 1.0 + rng.random(20), rng.normal(size=20)
    ours = LengthControl(str(file), None, "abc", 0)
    assert ours.of(preferences, longer_by, range(20), "abc", 0).way == "length_controlled_noreg"
    for places, digest in ((range(20), "other"), (range(1, 21), "abc")):
        found = ours.of(preferences, longer_by, places, digest, 0)
        assert found.way == "length_controlled_minimal"
        assert "other questions" in found.note


@pytest.mark.parametrize(
    "text",
    ["", "index,preference\n1,2\n", "index,instruction_difficulty\nx,1\n", "index,instruction_difficulty\n1,nan\n"],
)
def test_a_file_that_is_no_table_of_difficulties_is_told(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(FuserlError):
        LengthControl(str(tmp_path / "d.csv"), None, None, 0).identity()
    with pytest.raises(FuserlError, match="no such file"):
        LengthControl(str(tmp_path / "none.csv"), None, None, 0).identity()


def test_the_package_changes_nothing_around_it(monkeypatch):
    import logging
    import os

    import sklearn

    before = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers), sklearn.get_config()
    rng = np.random.default_rng(3)
    WITHOUT.of(1.0 + rng.random(20), rng.normal(size=20), range(20), "", 0)
    assert before == (
        dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers), sklearn.get_config(),
    )  # fmt: skip

"""The store gives back what was written, goes on after kills, and refuses what it was not made from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.store import Distributions, record
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError

MADE = {"model": "a", "texts": "b", "k": 3}


def rows(seed: int, tokens: int = 5, k: int = 3, vocabulary: int = 100) -> TopK:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(tokens)])
    return TopK(ids, -np.sort(rng.exponential(3, (tokens, k)), axis=1))


def writer(folder, **changed) -> DistributionsWriter:
    return DistributionsWriter(folder, **({"k": 3, "vocabulary": 100, "made_from": MADE} | changed))


def filled(folder, count: int = 3):
    with writer(folder) as opened:
        for number in range(count):
            opened.add(f"t{number}", rows(number, 4 + number), ce=np.full(4 + number, 0.5), notes={"bytes": number})
    return folder


def test_it_gives_back_what_was_written(tmp_path):
    store = Distributions(filled(tmp_path / "s"), MADE)
    assert list(store) == ["t0", "t1", "t2"]
    for number in range(3):
        sample = store[f"t{number}"]
        wanted = rows(number, 4 + number)
        np.testing.assert_array_equal(sample.ids, wanted.ids)
        np.testing.assert_allclose(sample.logps, wanted.logps, rtol=1e-3)
        np.testing.assert_array_equal(sample.top_k().ids, wanted.ids)
        assert sample.notes == {"bytes": number}
        assert (sample.ce == 0.5).all()
        assert sample.tail.max() < -1e4  # nothing beside what is kept


def test_reading_copies_nothing(tmp_path):
    store = Distributions(filled(tmp_path / "s"))
    sample = store["t1"]
    for view in (sample.ids, sample.logps, sample.ce, sample.tail):
        assert np.shares_memory(view, store.rows)
        assert not view.flags.writeable


def test_a_token_takes_at_most_eighty_bytes(tmp_path):
    assert record(10, 2**16 - 1).itemsize == 48
    assert record(10, 2**16).itemsize == 68 <= 80
    with writer(tmp_path / "s", k=10, vocabulary=151936) as opened:
        opened.add("t", rows(0, 1000, 10, 151936))
    size = sum(file.stat().st_size for file in (tmp_path / "s").iterdir())
    assert size / 1000 <= 80
    assert Distributions(tmp_path / "s")["t"].ids.max() > 2**16


def test_empty_places_stay_empty(tmp_path):
    top = TopK(np.array([[5, -1], [-1, -1]]), np.array([[-0.5, -np.inf], [-np.inf, -np.inf]]))
    with writer(tmp_path / "s") as opened:
        opened.add("t", top, tail=np.array([-2.0, 0.0]))
    sample = Distributions(tmp_path / "s")["t"]
    assert sample.top_k().ids.tolist() == [[5, -1, -1], [-1, -1, -1]]
    assert sample.top_k().probs.sum(axis=1) == pytest.approx([np.exp(-0.5), 0.0])
    assert sample.tail.tolist() == [-2.0, 0.0]
    assert np.isnan(sample.ce).all()


@pytest.mark.parametrize("torn", ["rows", "journal", "both"])
def test_a_killed_run_goes_on(tmp_path, torn):
    whole, part = filled(tmp_path / "whole"), filled(tmp_path / "part", 2)
    if torn != "journal":  # rows whose line was never written
        with (part / "rows.bin").open("ab") as file:
            file.write(b"x" * 77)
    if torn != "rows":
        with (part / "samples.jsonl").open("ab") as file:
            file.write(b'{"key": "t2", "start"')
    Distributions(part)  # may be read meanwhile
    with writer(part) as opened:
        assert [opened.add(f"t{n}", rows(n, 4 + n), ce=np.full(4 + n, 0.5), notes={"bytes": n}) for n in range(3)] == [
            False,
            False,
            True,
        ]
    for name in ("rows.bin", "samples.jsonl"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()


def test_something_else_is_refused(tmp_path):
    folder = filled(tmp_path / "s")
    with pytest.raises(FuserlError, match="something else") as caught:
        Distributions(folder, MADE | {"model": "c"})
    assert "model" in caught.value.where
    for changed in ({"made_from": MADE | {"texts": "c"}}, {"k": 4}, {"vocabulary": 101}):
        with pytest.raises(FuserlError, match="something else"):
            writer(folder, **changed)
    writer(folder).close()  # a refusal leaves no lock behind


def test_two_writers_do_not_meet(tmp_path):
    with writer(tmp_path / "s"), pytest.raises(FuserlError, match="another process"):
        writer(tmp_path / "s")


def damage_rows(folder):
    content = bytearray((folder / "rows.bin").read_bytes())
    content[50] ^= 1
    (folder / "rows.bin").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_rows, "not those that were written"),
        (lambda folder: (folder / "rows.bin").write_bytes(b"12"), "shorter"),
        (lambda folder: (folder / "rows.bin").unlink(), "shorter"),
        (lambda folder: (folder / "meta.json").write_text("{"), "no distributions"),
        (lambda folder: (folder / "meta.json").write_text(json.dumps({"layout": 9})), "layout 9"),
        (lambda folder: (folder / "samples.jsonl").write_text("nonsense\n"), "no record"),
    ],
)
def test_damage_is_told(tmp_path, damage, what):
    folder = filled(tmp_path / "s")
    damage(folder)
    with pytest.raises(FuserlError, match=what):
        Distributions(folder)


def test_rows_that_do_not_fit_are_told(tmp_path):
    with writer(tmp_path / "s") as opened:
        with pytest.raises(FuserlError, match="do not fit"):
            opened.add("a", rows(0, k=4))
        with pytest.raises(FuserlError, match="do not fit"):
            opened.add("a", TopK(np.array([[100]]), np.zeros((1, 1))))
        with pytest.raises(FuserlError, match="no number"):
            opened.add("a", TopK(np.array([[1]]), np.array([[np.nan]])))
    assert len(Distributions(tmp_path / "s")) == 0
    with pytest.raises(FuserlError, match="no distributions of `a`"):
        Distributions(tmp_path / "s")["a"]

"""Runs of `objective=distill`: ways of running that must not matter, limits that are other objectives, and P in its place."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import fused_stores as stores
import numpy as np
import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from torch.testing import assert_close

from fuserl.distributions.align import align
from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training import fused
from fuserl.training.dry_run import plan
from fuserl.training.setup import data_of

PLAIN = ("objective.normalize=none", "data.validation_limit=8")
MIXED = (  # all that may go wrong: several weighted responses, τ, a share that moves, the bucket
    *("objective.size=3", "objective.loss.weights=${weights}", "weights.tau=0.3", "objective.count=token"),
    *("divergence=jensen_shannon", "share=rising", "share.start=0.2", "objective.distillation.tail=bucket"),
    *("objective.distillation.temperature=2", "objective.distillation.temperature_power=2"),
)
WAYS = {
    "padded, small packs": ("trainer.packing=padded", "trainer.max_tokens=300"),
    "loader processes": ("trainer.num_workers=1",),
    "narrow head": ("trainer.logits_memory=1e-6",),
    "two ranks, small packs": ("trainer.devices=2", "trainer.max_tokens=200"),
}


SAME = 1e-10  # after Adam, which makes steps even of the rounding of gradients that are 0 (a key's bias)


@pytest.fixture
def data(settings):
    return stores.read(settings("sft_best", *PLAIN))


@pytest.fixture
def distil(run, data, tmp_path):
    """`distil(rows, *more)` trains on the store that `rows` fills."""

    def go(rows, *more: str, output: str = "run", name: str = "store") -> Path:
        if not (tmp_path / name).exists():
            stores.write(tmp_path / name, data, rows)
        path = f"objective.distillation.path={tmp_path / name}"
        return run("distill", path, *PLAIN, *more, output=output)

    return go


def metrics(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def assert_same(ours: Path, theirs: Path, tolerance: float) -> None:
    for (name, a), b in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def differ(one: Path, other: Path) -> bool:
    return any(
        float((a - b).abs().max()) > 1e-5 for a, b in zip(weights(one).values(), weights(other).values(), strict=True)
    )


def test_the_way_of_running_does_not_matter(distil):
    plain = distil(stores.noisy, *MIXED, output="plain")
    for number, (name, way) in enumerate(WAYS.items()):
        other = distil(stores.noisy, *MIXED, *way, output=f"way{number}")
        assert_same(other, plain, 1e-9)
        for metric in ("train/loss", "train/clm", "train/divergence", "train/given", "train/share"):
            assert metrics(other, metric) == pytest.approx(metrics(plain, metric), rel=1e-8), (name, metric)


def test_a_run_that_stopped_continues_to_the_same_bits(distil, monkeypatch):
    plain = distil(stores.noisy, *MIXED, output="plain")
    whole, calls = fused.FusedTexts.__call__, iter(range(10**6))

    def stops(self, row, column):
        if next(calls) > 100:
            raise RuntimeError("the power went")
        return whole(self, row, column)

    with monkeypatch.context() as patched:
        patched.setattr(fused.FusedTexts, "__call__", stops)
        with pytest.raises(FuserlError, match="the power went"):
            distil(stores.noisy, *MIXED, output="stopped")
    assert 0 < max(metrics(plain.with_name("stopped"), "step")) < 4, "it was over, or had not begun"
    assert_same(distil(stores.noisy, *MIXED, output="stopped"), plain, 0)


@pytest.mark.parametrize("pool", ["sft_best", "fusesft"])
def test_a_share_of_one_is_the_objective_without_distributions(pool, run, distil):
    wide = ("objective.size=3", "weights.tau=0.3") if pool == "fusesft" else ()
    rule = ("objective.loss.weights=${weights}",) if pool == "fusesft" else ()
    ours = distil(stores.noisy, "share.value=1", *wide, *rule, output="ours")
    theirs = run(pool, *PLAIN, *wide, output="theirs")
    assert_same(ours, theirs, SAME)
    assert metrics(ours, "train/loss") == pytest.approx(metrics(theirs, "train/loss"), rel=1e-12)
    assert metrics(ours, "train/clm") == metrics(ours, "train/loss")
    assert metrics(ours, "val/nll") == pytest.approx(metrics(theirs, "val/nll"), rel=1e-12)


def test_row_j_is_of_the_jth_trained_token(run, distil):
    """One-hot rows on the labels make the divergence the CLM; FuseLLM's released rows stand one place too late."""
    right = distil(stores.gold, output="right", name="right rows")
    late = distil(partial(stores.gold, shift=1), output="late", name="late rows")
    assert metrics(right, "train/divergence") == pytest.approx(metrics(right, "train/clm"), rel=1e-12)
    assert all(
        abs(d - c) > 0.01 for d, c in zip(metrics(late, "train/divergence"), metrics(late, "train/clm"), strict=True)
    )
    assert_same(right, run("sft_best", *PLAIN, output="plain"), SAME)
    assert differ(late, right)


def test_what_is_aligned_from_the_target_itself_teaches_nothing(run, target, tmp_path):
    """The way from one verb to the other: texts, tokens and places meet, or the divergence would be nats."""
    settings = (
        f"target.path={target}",
        "target.dtype=float64",
        "data=miniature",
        "data.limit=40",
        f"cache={tmp_path / 'cache'}",
    )
    align(compose("align", [*settings, f"+sources.same.path={target}", f"output={tmp_path / 'aligned'}"]))
    path = f"objective.distillation.path={tmp_path / 'aligned/fused/all'}"
    bucket = ("divergence=forward_kl", "share.value=0", "objective.distillation.tail=bucket")
    folder = run("distill", path, *PLAIN, *bucket, "optimizer.lr=1e-9")
    assert metrics(folder, "train/given") == [1.0] * 4
    assert max(metrics(folder, "train/divergence")) < 1e-5 < 1 < min(metrics(folder, "train/clm"))


def test_where_nothing_is_expected_the_loss_is_clm(run, distil):
    empty = distil(stores.nothing, output="empty", name="no rows")
    assert_same(empty, run("sft_best", *PLAIN, output="plain"), SAME)
    assert metrics(empty, "train/given") == [0.0] * 4
    some = distil(stores.noisy, output="some")
    assert all(0.5 < given < 0.95 for given in metrics(some, "train/given"))


def test_what_is_logged_adds_up(distil):
    folder = distil(stores.noisy, *MIXED)
    loss, clm, divergence, share = (metrics(folder, f"train/{name}") for name in ("loss", "clm", "divergence", "share"))
    assert share == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-12)
    mixed = [s * c + (1 - s) * d for s, c, d in zip(share, clm, divergence, strict=True)]
    assert loss == pytest.approx(mixed, rel=1e-12)
    assert not any(name in folder.joinpath("metrics.csv").read_text() for name in ("val/clm", "val/divergence"))


def test_every_setting_is_really_used(distil):
    without = distil(stores.noisy, output="without")
    for number, setting in enumerate(
        ("distillation.temperature=2", "distillation.tail=bucket", "share.value=0.5", "divergence=reverse_kl")
    ):
        key = f"objective.{setting}" if setting.startswith("distillation") else setting
        assert differ(distil(stores.noisy, key, output=f"with{number}"), without), setting


def test_the_run_says_what_it_learned_from(distil, capsys):
    folder = distil(stores.noisy)
    summary, manifest = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "manifest"))
    made_from = json.loads((folder.parent / "store/meta.json").read_text())["made_from"]
    assert summary["distributions"]["made_from"] == made_from
    assert summary["distributions"]["digest"] == manifest["inputs"]["distributions"]
    assert f"distributions for {summary['distributions']['given']:.1%} of the trained tokens" in capsys.readouterr().err


def test_a_cut_response_keeps_its_first_rows(run, distil):
    cut = ("data.max_length=24", "data.on_too_long=truncate_response")
    assert_same(distil(stores.gold, *cut, output="ours"), run("sft_best", *PLAIN, *cut, output="theirs"), SAME)


def test_a_run_is_planned(settings, data, tmp_path):
    stores.write(tmp_path / "store", data, stores.noisy)
    given = f"objective.distillation.path={tmp_path / 'store'}"
    for way in (("objective.distillation.temperature=2",), ("trainer.packing=padded", "target.checkpointing=full")):
        found = plan(compose("plan", settings("distill", given, *PLAIN, *way)))
        assert found.memory["none"].head > 0 < found.memory["none"].activations
        assert found.amounts.extra_flops > 0 < found.amounts.useful_flops


def spoilt(kind: str, data) -> tuple:
    """(data, rows) of a store that a run must refuse."""
    tokens, made_from, _ = data
    changed = {"tokenizer": "other"} if kind == "tokenizer" else {"template": "other"} if kind == "template" else {}

    def rows(labels: np.ndarray):
        ids, logps, tail = stores.noisy(labels)
        ids, logps = ids.copy(), np.where(ids >= 0, logps, -1.0)
        last = int(labels.sum()) % 5 == 0
        if kind == "missing" and last:
            return None
        if kind == "rows" and last:
            return ids[1:], logps[1:], tail[1:]
        ids[-1] = {"ids": [3, 4, 5, 60000], "twice": [3, 4, 5, 4]}.get(kind, ids[-1]) if last else ids[-1]
        return ids, logps, tail

    return (tokens, made_from | changed, 2**16 - 2), rows


MESSAGES = {
    "tokenizer": "made for another tokenizer than the target's",
    "template": "made for another template than the target's",
    "missing": r"\d+ of \d+ texts have no distributions, the first is response \d of prompt `",
    "rows": r"another number of distributions than of trained tokens, the first is response \d of prompt `.*`: \d+ for \d+",
    "ids": r"ids that the target does not have \(it has \d+\), first in response \d of prompt `",
    "twice": r"a token twice for one place, first in response \d of prompt `",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_store_that_does_not_fit_is_refused_before_a_model_is_loaded(kind, data, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", 50)  # so that there are many
    stores.write(tmp_path / "store", *spoilt(kind, data))
    with pytest.raises(FuserlError, match=MESSAGES[kind]) as caught:
        data_of(compose("train", settings("distill", f"objective.distillation.path={tmp_path / 'store'}", *PLAIN)))
    assert "run `fuserl align` with the same data, target and template" in caught.value.hint


def test_a_path_must_be_given_and_hold_a_store(settings, tmp_path):
    with pytest.raises(FuserlError, match=r"`objective.distillation.path` must be given"):
        compose("train", settings("distill", *PLAIN))
    with pytest.raises(FuserlError, match="holds no distributions"):
        data_of(compose("train", settings("distill", f"objective.distillation.path={tmp_path / 'none'}", *PLAIN)))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("objective.distillation.temperature=0", "distillation.temperature"),
        ("objective.distillation.tail=keep", "is no choice of `distillation.tail`"),
        ("objective.distillation.divergence=forward_kl", "is no function"),
        ("share.value=2", "`2` is no value of `share.value`"),
        ("divergence=reverse_kl divergence.floor=1", "`1` is no value of `divergence.floor`"),
    ],
)
def test_settings_are_looked_at_before_a_model_is_loaded(setting, says, settings):
    with pytest.raises(FuserlError, match=says):
        data_of(compose("train", settings("distill", "objective.distillation.path=x", *PLAIN, *setting.split())))


def test_a_head_wider_than_the_tokenizer_is_no_mistake(data, settings, tmp_path, target):
    folder = tmp_path / "wide"
    folder.mkdir()
    for file in target.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 64}))
    wide = (*data[:2], data[2] + 64)
    stores.write(
        tmp_path / "store", wide, lambda labels: (np.full((len(labels), 1), data[2] + 63), *stores.gold(labels)[1:])
    )
    given = ("objective.distillation.path=" + str(tmp_path / "store"), f"target.path={folder}")
    _, _, prepared = data_of(compose("train", settings("distill", *PLAIN, *given)))
    assert prepared.fused.given == 1.0
    with pytest.raises(FuserlError, match="ids that the target does not have"):
        data_of(compose("train", settings("distill", *PLAIN, given[0])))


def test_a_pack_goes_to_another_device_whole(data, settings, tmp_path):
    stores.write(tmp_path / "store", data, stores.noisy)
    given = f"objective.distillation.path={tmp_path / 'store'}"
    _, _, prepared = data_of(compose("train", settings("distill", given, *PLAIN)))
    pack = prepared.train.pack(0, 0, 0)
    assert pack.support_ids.shape == (len(pack.labels), stores.K)
    moved = pack.to("meta")
    assert {part.device.type for part in moved if isinstance(part, torch.Tensor)} == {"meta"}
    assert prepared.validation.pack(0, 0, 0).support_ids is None

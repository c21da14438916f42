"""What a run promises: ln 2 at the start, alarms, exported models, loggers, recipes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import kit
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fuserl.cli import run_verb
from fuserl.errors import FuserlError
from fuserl.settings import compose
from fuserl.training.callbacks.guards import CollapseAlarm
from fuserl.training.pipeline import pipeline
from fuserl.training.run import train

MINIATURE = [
    "data=miniature",
    "target=miniature",
    "logger=csv",
    "trainer.progress_bar=false",
    "data.limit=200",
    "data.validation_limit=60",
]


@pytest.mark.parametrize("packing", ["shared", "padded"])
@pytest.mark.parametrize("objective", ["fusepo_dpo", "dpo_best"])
def test_the_loss_starts_at_ln_2(objective, packing, run):
    folder = run(objective, f"trainer.packing={packing}", "max_steps=1", "optimizer.lr=1e-12")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["first_train_loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
    assert summary["validation"]["val/accuracy"]["first"] == 0.5


def test_another_reference_is_refused_before_the_first_step(run, tmp_path):
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(kit.ROOT / "src/fuserl/miniature/target", dtype=torch.float64)
    model.save_pretrained(other)
    with pytest.raises(FuserlError, match="policy and reference differ"):
        run("fusepo_dpo", f"reference.path={other}")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_collapse_raises_the_alarm_before_the_scores_are_gone(tmp_path):
    """Offline RLOO without a KL term at a high rate: the loss improves while the model falls apart."""
    settings = [
        "objective=fusepo_rloo", "objective.kl=0", "optimizer.lr=2e-3", "max_steps=40", "trainer.val_every=4", "batch_size=32",
        "probe.score=fuserl.miniature.tasks.score", "probe.prompts=32", "probe.max_new_tokens=24",
    ]  # fmt: skip
    folder = train(
        compose("train", [*MINIATURE, *settings, f"output={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"])
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["alarms"], "no alarm was raised"
    with (folder / "metrics.csv").open() as file:
        probe = [(int(row["step"]), float(row["probe/score"])) for row in csv.DictReader(file) if row["probe/score"]]
    first_alarm = min(alarm["step"] for alarm in summary["alarms"])
    assert first_alarm < 40
    score_then = next(score for step, score in probe if step == first_alarm)
    assert score_then > probe[-1][1], "the alarm came after the scores were gone"


def test_a_healthy_run_raises_no_alarm(tmp_path):
    settings = [
        "objective=fusesft",
        "optimizer.lr=3e-4",
        "max_steps=20",
        "probe.score=fuserl.miniature.tasks.score",
        "probe.prompts=32",
    ]
    folder = train(
        compose("train", [*MINIATURE, *settings, f"output={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"])
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["alarms"] == []
    assert summary["validation"]["val/nll"]["last"] < summary["validation"]["val/nll"]["first"]
    assert summary["tokens_naive"] > summary["tokens_computed"] > 0


def test_each_sign_of_a_collapse_is_told():
    alarm = CollapseAlarm(chosen_drop=0.5, length_growth=1.5, unfinished_rise=0.1, score_drop=0.2, stop=False)
    alarm.first = {"val/chosen_logps_per_token": -1.0, "probe/tokens": 4.0, "probe/unfinished": 0.0, "probe/score": 0.8}
    assert alarm.complaints(alarm.first) == []
    now = {"val/chosen_logps_per_token": -1.6, "probe/tokens": 7.0, "probe/unfinished": 0.2, "probe/score": 0.5}
    assert len(alarm.complaints(now)) == 4


def test_a_non_finite_gradient_names_its_groups(run, monkeypatch):
    from fuserl.models import scoring

    plain = scoring.table
    monkeypatch.setattr(
        scoring, "table", lambda batch, logps: plain(batch, logps * (float("nan") if logps.requires_grad else 1.0))
    )
    with pytest.raises(FuserlError, match="not finite") as caught:
        run("fusesft")
    assert "mini-train-" in caught.value.where


def test_a_finished_run_is_left_alone_and_its_model_is_plain(run, capsys):
    folder = run("fusesft", "max_steps=1")
    before = (folder / "summary.json").stat().st_mtime_ns
    assert run("fusesft", "max_steps=1") == folder
    assert (folder / "summary.json").stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert "fuserl" not in json.dumps(json.loads((folder / "model" / "config.json").read_text()))
    assert model(torch.tensor([[1, 5, 9]])).logits.isfinite().all()


def test_weights_and_biases_runs_offline_and_is_closed(run, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run("fusesft", "logger=wandb", "max_steps=1")
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    import wandb

    assert wandb.run is None, "the run was left open"


def test_a_recipe_runs_its_stages_and_skips_finished_ones(tmp_path, capsys):
    small = [
        "logger=csv",
        "trainer.progress_bar=false",
        "max_steps=3",
        "data.limit=60",
        "data.validation_limit=20",
        "probe.prompts=0",
    ]
    extra = f"overrides={json.dumps(small)}"
    overrides = [extra, f"output={tmp_path / 'recipe'}"]
    last = pipeline(compose("pipeline", overrides))
    assert last.name == "02_po"
    summary = json.loads((last / "summary.json").read_text())
    assert summary["objective"] == "fusepo_dpo"
    capsys.readouterr()
    pipeline(compose("pipeline", overrides))
    assert capsys.readouterr().err.count("finished already") == 2


def test_multirun_gives_each_job_its_own_folder(settings, tmp_path, monkeypatch):
    """In this process; tests/sweeps starts processes."""
    monkeypatch.chdir(tmp_path)
    small = [s for s in settings("fusesft", "max_steps=1") if not s.startswith("output=")]
    run_verb("train", [*small, "seed=0,1", "hydra/launcher=basic", "--multirun"])
    assert len(list((tmp_path / "runs").glob("sweep-*/train-*/summary.json"))) == 2


def test_help_and_doctor(capsys):
    run_verb("doctor", [])
    out = capsys.readouterr().out
    assert "sdpa" in out
    assert "differs from the dense mask" in out
    done = subprocess.run([sys.executable, "-m", "fuserl", "train", "--help"], capture_output=True, text=True)
    assert "fusepo_dpo" in done.stdout


@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo"])
def test_mixed_precision_trains_near_full_precision(run, objective):
    """bf16-mixed: policy and reference agree before the first step, gradients are clipped, weights stay in fp32."""
    full, mixed = (
        run(
            objective, f"trainer.precision={precision}", "target.dtype=float32", "optimizer.lr=1e-3",
            output=precision,
        )
        for precision in ("32-true", "bf16-mixed")
    )  # fmt: skip
    nll = [json.loads((folder / "summary.json").read_text())["validation"]["val/nll"] for folder in (full, mixed)]
    assert nll[1]["first"] == pytest.approx(nll[0]["first"], rel=0.01)
    assert nll[1]["last"] == pytest.approx(nll[0]["last"], rel=0.01)
    assert nll[1]["last"] < nll[1]["first"] or objective == "fusepo_dpo"
    weights = load_file(mixed / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}

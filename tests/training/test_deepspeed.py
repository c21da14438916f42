"""ZeRO on two processors: DeepSpeed shares out the work and nothing else, as every other strategy. `make test-deepspeed`."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import fused_stores as stores
import kit
import pytest
import test_skipped_steps
import torch
from conftest import weights  # tests/training/conftest.py
from forking import Nursery
from torch.testing import assert_close

from fuserl.training import zero
from fuserl.training.checkpoints import damage
from fuserl.training.zero import Precision

pytestmark = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: make test-deepspeed")

SINGLE = ("target.dtype=float32", "trainer.precision=32-true", "optimizer.eps=1e-3", "trainer.packing=padded")
SHORT = ("max_steps=3", "trainer.max_tokens=200", "data.validation_limit=8", *SINGLE)  # several packs a step

poisoned = test_skipped_steps.poisoned  # its fixture

DISTILLED = ("objective.normalize=none", "objective.size=3", "objective.loss.weights=${weights}", "weights.tau=0.3")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are ranks."""
    imports = ("training.ranks", "transformers.models.gpt_neox")
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), *imports, paths=[kit.ROOT / "tests"])
    yield nursery
    nursery.close()


@pytest.fixture
def ranks(nursery, settings, tmp_path) -> Callable[..., Path]:
    """`ranks(stage, objective, *more)` trains in two processes and gives the folder."""

    def go(stage: int, objective: str, *more: str, output: str = "zero", until: int | None = None) -> Path:
        folder = tmp_path / output
        watch = {} if until is None else {"kill_when": lambda: newest(folder) >= until}
        zero = (f"trainer=deepspeed_zero{stage}", "trainer.accelerator=cpu")
        done = nursery.run("training.ranks", ["2", *settings(objective, *zero, *more, output=output)], **watch)
        assert done == (until is None)
        return folder

    return go


def newest(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("checkpoints/step-*.ckpt")), default=0)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same(ours: Path, theirs: Path, atol: float = 1e-6) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=0, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo", "fusepo_simpo", "fusepo_rloo", "distill"])
def test_two_processes_reach_the_weights_of_one(objective, stage, run, ranks, settings, tmp_path):
    more = SHORT
    if objective == "distill":
        stores.write(tmp_path / "store", stores.read(settings("sft_best", "objective.normalize=none")), stores.noisy)
        more = (*SHORT, *DISTILLED, f"objective.distillation.path={tmp_path / 'store'}")
    alone = run(objective, *more, output="alone")
    folder = ranks(stage, objective, *more)
    assert_same(folder, alone)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert ours["last_train_loss"] == pytest.approx(theirs["last_train_loss"], rel=1e-5)
    assert ours["validation"]["val/nll"]["last"] == pytest.approx(theirs["validation"]["val/nll"]["last"], rel=1e-5)


WAYS = {
    "packs": (2, ("trainer.packing=shared",)),  # the head's gradients are computed in forward
    "offloaded, 2": (2, ("trainer.strategy.offload=true",)),
    "offloaded, 3": (3, ("trainer.strategy.offload=true",)),
    "clipped, 2": (2, ("optimizer.clip=0.01",)),
    "clipped, 3": (3, ("optimizer.clip=0.01",)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_reaches_the_weights_of_one(way, run, ranks):
    stage, more = WAYS[way]
    alone = run("fusepo_dpo", *SHORT, *(one for one in more if "strategy" not in one), output="alone")
    assert_same(ranks(stage, "fusepo_dpo", *SHORT, *more), alone)


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_probes_and_a_test(stage, run, ranks):
    adapter = "target.lora={r: 1, target_modules: [query_key_value]}"
    more = (*SHORT, adapter, "probe.prompts=4", "probe.max_new_tokens=6", "test.split=test")
    alone = run("fusepo_dpo", *more, output="alone")
    folder = ranks(stage, "fusepo_dpo", *more)
    assert_same(folder, alone)
    assert (folder / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()
    assert (folder / "test.jsonl").read_text() == (alone / "test.jsonl").read_text()
    assert (folder / "adapter/adapter_model.safetensors").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_half_precision_rounds_neither_weights_nor_rewards(stage, run, ranks):
    """The loss is that of one process to its rounding, though rewards and log-probs of -100 nats do not fit into 8 bits."""
    half = (*SHORT, "trainer.precision=bf16-mixed", "objective.beta=0.5")
    alone = run("fusepo_dpo", *half, output="alone")
    folder = ranks(stage, "fusepo_dpo", *half)
    assert weights(folder)["embed_out.weight"].dtype == torch.float32
    assert_same(folder, alone, atol=2e-3)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert ours["validation"]["val/nll"]["last"] == pytest.approx(theirs["validation"]["val/nll"]["last"], rel=1e-2)


@pytest.mark.parametrize("stage", [2, 3])
def test_steps_are_left_out_as_elsewhere(stage, run, ranks, poisoned):
    more = (*poisoned, *SINGLE, "nonfinite.skips=4")
    alone = run("fusesft", *more, output="alone")
    folder = ranks(stage, "fusesft", *more)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert ours["skipped_steps"] == theirs["skipped_steps"] != []
    assert_same(folder, alone)
    norms = [[float(row["train/grad_norm"]) for row in rows(f) if row["train/grad_norm"]] for f in (folder, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_steps_of_half_precision_weights_are_left_out_as_well(stage, run, ranks, poisoned):
    more = (*poisoned, *SINGLE, "target.dtype=bfloat16", "nonfinite.skips=4")
    alone, folder = run("fusesft", *more, output="alone"), ranks(stage, "fusesft", *more)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert ours["skipped_steps"] == theirs["skipped_steps"] != []
    assert all(weight.isfinite().all() for name, weight in weights(folder).items() if "embed_in" not in name)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_stops_the_run(stage, ranks, poisoned):
    with pytest.raises(AssertionError, match=r"the gradient of optimiser step \d+ is not finite"):
        ranks(stage, "fusesft", *poisoned, *SINGLE)


BEST = ("max_steps=12", "checkpoint.keep=2", "checkpoint.best=val/nll", "optimizer.lr=0.3")  # it gets worse again


@pytest.mark.parametrize("stage", [2, 3])
def test_killed_and_resumed_with_the_best_one_kept(stage, run, ranks):
    more = (*SHORT, *BEST)
    alone = run("fusepo_dpo", *more, output="alone")
    for until in (3, 7, None):
        folder = ranks(stage, "fusepo_dpo", *more, until=until)
        assert (folder / "summary.json").exists() == (until is None), "the run was over before it was killed"
        if until is not None:
            newest_one = folder / f"checkpoints/step-{newest(folder)}.ckpt"
            assert all(damage(one) is None for one in folder.glob("checkpoints/step-*.ckpt"))
            if until == 7:
                piece = next(newest_one.glob("checkpoint/*optim_states.pt"))
                piece.write_bytes(piece.read_bytes()[:-100] + bytes(100))
                assert "is not what was written" in str(damage(newest_one))
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert ours["best_step"] == theirs["best_step"] < 12
    kept = {path.name for f in (folder, alone) for path in f.glob("checkpoints/step-*.ckpt")}
    assert kept == {f"step-{step}.ckpt" for step in (theirs["best_step"], 11, 12)}
    assert_same(folder, alone, atol=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_signal_costs_no_step(stage, run, settings, tmp_path):
    """Through the command, which starts the processes."""
    more = (*SHORT, "max_steps=12", "checkpoint.every=5", "checkpoint.keep=1")
    zero = (f"trainer=deepspeed_zero{stage}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.timeout=60")
    command = [sys.executable, "-m", "fuserl.cli", "train", *settings("fusepo_dpo", *zero, *more)]
    folder = tmp_path / "run"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run_:
        while newest(folder) < 5 and run_.poll() is None:
            time.sleep(0.01)
        run_.send_signal(signal.SIGTERM)
        told = run_.stderr.read() if run_.stderr else ""
    assert run_.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told, told
    done = newest(folder)
    assert 5 <= done < 12
    assert f"step {done} was the last one" in told
    subprocess.run(command, check=True)
    assert_same(folder, run("fusepo_dpo", *more, output="alone"))


def test_other_checkpoints_are_refused(run, ranks):
    alone = run("fusesft", *SHORT, "max_steps=2", output="alone")
    (alone / "summary.json").unlink()
    with pytest.raises(AssertionError, match="DeepSpeed cannot read a checkpoint that another strategy has written"):
        ranks(2, "fusesft", *SHORT, "max_steps=2", output="alone")


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_its_own_parser_reads_our_settings(stage, offload, precision, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig  # type: ignore[import-not-found]

    read = DeepSpeedConfig(zero.settings(stage, offload, precision))
    assert read.zero_config.stage == stage
    assert (read.zero_config.offload_optimizer is not None) == offload
    assert read.zero_allow_untested_optimizer
    assert read.zero_force_ds_cpu_optimizer != offload
    assert read.torch_autocast_enabled == (precision == "bf16-mixed")
    assert not read.bfloat16_config.enabled


@pytest.mark.parametrize("more", [("trainer=deepspeed_zero2", "trainer.devices=1"), ("trainer=deepspeed_zero3",)])
def test_another_number_of_processes_or_stage_is_refused(more, settings, ranks, nursery):
    folder = ranks(2, "fusesft", *SHORT, "max_steps=2")
    (folder / "summary.json").unlink()
    count = "1" if "trainer.devices=1" in more else "2"
    again = settings("fusesft", "trainer.accelerator=cpu", *SHORT, "max_steps=2", *more, output="zero")
    with pytest.raises(
        AssertionError, match=r"the checkpoint is of ZeRO-2 over 2 process\(es\), and this run is ZeRO-"
    ):
        nursery.run("training.ranks", [count, *(one for one in again if "devices" not in one)])


@pytest.mark.filterwarnings("ignore")
def test_one_process_alone(run, monkeypatch):
    """In this process, where annotations are checked; Lightning leaves what it tells processes in the environment."""
    alone = run("fusesft", *SHORT, output="alone")
    with monkeypatch.context() as patch:
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"):
            patch.setenv(name, "")
            patch.delenv(name)
        folder = run("fusesft", "trainer=deepspeed_zero2", "trainer.accelerator=cpu", *SHORT, output="zero")
    assert_same(folder, alone)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

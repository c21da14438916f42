"""Strategies share out the work and nothing else: every one reaches the weights of one process, killed or not."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fused_stores as stores
import pytest
import torch
from conftest import weights  # tests/training/conftest.py
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from fuserl.errors import FuserlError
from fuserl.settings import compose, config_folder, leaves, plain

SAME = dict(rtol=0, atol=1e-9)
SHORT = ("max_steps=3", "trainer.max_tokens=200", "data.validation_limit=8")  # several packs a step
DISTILLED = ("objective.normalize=none", "objective.size=3", "objective.loss.weights=${weights}", "weights.tau=0.3")


@pytest.fixture
def ranks(nursery, settings, tmp_path) -> Callable[..., Path]:
    """`ranks(count, objective, *more)` trains in so many processes and gives the folder."""

    def go(count: int, objective: str, *more: str, output: str, until: int | None = None) -> Path:
        folder = tmp_path / output
        watch = {} if until is None else {"kill_when": lambda: newest(folder) >= until}
        done = nursery.run("training.ranks", [str(count), *settings(objective, *more, output=output)], **watch)
        assert done == (until is None)
        return folder

    return go


def newest(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("checkpoints/step-*.ckpt")), default=0)


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], **SAME, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("objective", ["fusesft", "fusepo_dpo", "fusepo_simpo", "fusepo_rloo", "distill"])
def test_two_processes_reach_the_weights_of_one(objective, run, ranks, settings, tmp_path):
    more = SHORT
    if objective == "distill":
        stores.write(tmp_path / "store", stores.read(settings("sft_best", "objective.normalize=none")), stores.noisy)
        more = (*SHORT, *DISTILLED, f"objective.distillation.path={tmp_path / 'store'}")
    alone = run(objective, *more, output="alone")
    for strategy in ("ddp", "fsdp2"):
        folder = ranks(2, objective, *more, f"trainer={strategy}", output=strategy)
        assert_same(folder, alone)
        ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
        assert ours["last_train_loss"] == pytest.approx(theirs["last_train_loss"], rel=1e-8), strategy
        assert ours["validation"]["val/nll"]["last"] == pytest.approx(theirs["validation"]["val/nll"]["last"], rel=1e-8)


CHAINS = {
    "cut up over two, one, two": ((2, "fsdp2", 3), (1, "fsdp2", 6), (2, "fsdp2", None)),
    "another strategy every time": ((1, "default", 3), (2, "fsdp2", 5), (2, "ddp", 7), (2, "fsdp2", 8), (1, "default", None)),
}  # fmt: skip


@pytest.fixture
def llama(target, tmp_path) -> Path:
    """A target whose files hold it weight by weight under its own names, and which is written so, too."""
    folder = tmp_path / "llama"
    shutil.copytree(target, folder)
    (folder / "model.safetensors").unlink()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = AutoConfig.from_pretrained(target).vocab_size
    config = LlamaConfig(
        vocab_size=size, num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True, **shape
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).double().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_is_written_in_pieces_as_it_is_whole(adapted, run, ranks, llama):
    more = (*SHORT, f"target.path={llama}", "test.split=test", "probe.max_new_tokens=6")
    if adapted:
        more = (*more, "target.lora={r: 2, target_modules: [q_proj, down_proj]}")
    alone = run("fusepo_dpo", *more, output="alone")
    # the norms of this model compute in fp32, so runs agree to its rounding; what each writes is compared with what it holds
    folder = ranks(2, "fusepo_dpo", *more, "trainer=fsdp2", output="pieces")
    ours, theirs = ({p.name for p in (f / "model").iterdir()} for f in (folder, alone))
    assert ours == theirs
    for name in theirs:
        if name.endswith(".json"):
            assert json.loads((folder / "model" / name).read_text()) == json.loads((alone / "model" / name).read_text())
    a, b = weights(folder), weights(alone)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=0, atol=1e-4)
    assert (folder / "test.jsonl").read_text() == (alone / "test.jsonl").read_text()
    if adapted:
        ours, theirs = (load_file(f / "adapter/adapter_model.safetensors") for f in (folder, alone))
        assert ours.keys() == theirs.keys()


@pytest.fixture
def tied(target, tmp_path) -> Path:
    """The target with one matrix for embeddings and head, which a checkpoint names twice."""
    folder = tmp_path / "tied"
    shutil.copytree(target, folder)
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(target, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).double().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_and_resumed_with_other_processes(chain, run, ranks, tied, tmp_path):
    longer = (*SHORT, "max_steps=12", f"target.path={tied}")
    alone = run("fusepo_dpo", *longer, output="alone")
    assert "embed_out.weight" not in weights(alone)
    for count, strategy, until in CHAINS[chain]:
        folder = ranks(count, "fusepo_dpo", *longer, f"trainer={strategy}", output="killed", until=until)
        assert (folder / "summary.json").exists() == (until is None), "the run was over before it was killed"
        if until is not None:
            halved = folder / f"checkpoints/step-{until + 90}.part"  # as a kill during a write leaves it
            halved.mkdir()
            (halved / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert_same(folder, alone)
    steps = [[line.split(",")[0] for line in (f / "metrics.csv").read_text().splitlines()] for f in (folder, alone)]
    assert steps[0] == steps[1]


def test_adapters_probes_and_clipping_in_pieces(run, ranks):
    adapter = "target.lora={r: 1, target_modules: [query_key_value]}"  # one row over two processes: one holds nothing
    more = (*SHORT, adapter, "optimizer.clip=0.01", "probe.prompts=4", "probe.max_new_tokens=6")
    ways = (("target.checkpointing=selective",), ("trainer.packing=padded",))
    alone = run("fusepo_dpo", *more, output="alone")
    for number, way in enumerate(ways):
        folder = ranks(2, "fusepo_dpo", *more, *way, "trainer=fsdp2", output=f"pieces{number}")
        assert_same(folder, alone)
        assert (folder / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()
        assert (folder / "adapter/adapter_model.safetensors").exists()


def test_an_alarm_that_one_process_sees_stops_all(ranks):
    """Probes are sampled by the first alone under `ddp`: a rise of their unfinished share is news to the other."""
    alarm = ("probe.prompts=2", "probe.max_new_tokens=4", "alarm.unfinished_rise=-2", "alarm.stop=true")
    folder = ranks(2, "fusesft", *SHORT, "max_steps=8", *alarm, "trainer=ddp", output="stopped")
    assert json.loads((folder / "summary.json").read_text())["steps_done"] == 2


def test_weights_may_travel_in_half_precision(run, ranks):
    single = (*SHORT, "trainer.precision=32-true", "target.dtype=float32", "optimizer.lr=1e-3")
    alone = run("fusesft", *single, output="alone")
    half = ranks(2, "fusesft", *single, "trainer=fsdp2", "trainer.strategy.gather=bfloat16", output="half")
    gaps = [float((a - b).abs().max()) for a, b in zip(weights(half).values(), weights(alone).values(), strict=True)]
    assert weights(half)["embed_out.weight"].dtype == torch.float32
    assert 0 < max(gaps) < 7e-3, "the same way, but for rounding; three steps of 1e-3 at most"


OPTIONS = sorted(path.stem for path in (config_folder() / "trainer").glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_the_settings_of_the_default(option):
    ours, default = (
        {
            key
            for key, _ in leaves(plain(compose("train", [f"trainer={name}"]).trainer))
            if not key.startswith("strategy")
        }
        for name in (option, "default")
    )
    assert ours == default


@pytest.mark.parametrize(
    ("setting", "says"),
    [("strategy.gather=bf17", "there is no dtype `bf17`"), ("compile=true", "layers that are cut up are not compiled")],
)
def test_what_cannot_be_cut_up_is_told_first(setting, says, run, monkeypatch):
    monkeypatch.setattr("fuserl.training.run.Setup", None)
    with pytest.raises(FuserlError, match=says):
        run("fusesft", "trainer=fsdp2", f"trainer.{setting}")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_without_a_gpu_says_what_to_use_before_anything_is_read(stage, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fuserl.training.run.data_of", None)
    monkeypatch.setattr("fuserl.training.run.Setup", None)
    with pytest.raises(FuserlError, match="DeepSpeed needs a GPU") as caught:
        run("fusesft", f"trainer=deepspeed_zero{stage}", "trainer.devices=2", "trainer.accelerator=gpu")
    assert "trainer=fsdp2" in caught.value.hint


def test_a_run_over_two_machines_says_how_it_is_started(run):
    with pytest.raises(FuserlError, match="over 2 machines is started on each of them") as caught:
        run("fusesft", "trainer=fsdp2", "trainer.nodes=2", "trainer.devices=8")
    assert "--nnodes=2 --nproc-per-node=8" in caught.value.hint


def test_two_machines_are_two_agents_of_torchrun(settings, run, tmp_path):
    """Here both are this one; what they share is the output folder and the cache."""
    more = (*SHORT, "max_steps=2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    over = settings("fusesft", *more, "trainer=fsdp2", "trainer.nodes=2", output="both")
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command = [*agent, meeting, "--local-addr=127.0.0.1", "-m", "fuserl.training.worker", *over]
    agents = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [agent.communicate()[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert_same(tmp_path / "both", run("fusesft", *more, output="alone"))


def test_a_folder_of_another_program_is_no_checkpoint(run, tmp_path):
    (tmp_path / "run/checkpoints/step-1.ckpt/checkpoint").mkdir(parents=True)
    with pytest.raises(FuserlError, match="the checkpoint has no `rest.pt`"):
        run("fusesft", *SHORT)

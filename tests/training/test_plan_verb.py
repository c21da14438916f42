"""`fuserl plan` says what a run then needs, in every setting, and loads no weights for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import kit
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from fuserl.cli import run_verb
from fuserl.errors import FuserlError
from fuserl.models.load import load_policy
from fuserl.settings import compose, config_folder
from fuserl.training import optim
from fuserl.training.dry_run import findings, plan
from fuserl.training.hardware import Hardware
from fuserl.training.heap import Heap
from fuserl.training.memory import Model, largest_pack
from fuserl.training.run import train
from fuserl.training.setup import data_of

OBJECTIVES = sorted(path.stem for path in (config_folder() / "objective").glob("*.yaml") if path.stem != "distill")
PRESETS = sorted(path.stem for path in (config_folder() / "hardware").glob("*.yaml"))
MINIATURE = kit.ROOT / "src/fuserl/miniature/target"
LORA = "target.lora={r: 4, target_modules: all-linear}"
SETTINGS = {
    "LoRA": (LORA,),
    "LoRA on a compressed model": (LORA, "target.checkpointing=full"),
    "full checkpointing": ("target.checkpointing=full",),
    "selective checkpointing": ("target.checkpointing=selective",),
    "padded": ("trainer.packing=padded",),
    "compiled": ("trainer.compile=true",),
    "few logits": ("trainer.logits_memory=0.0001",),
    "mixed precision": ("trainer.precision=bf16-mixed",),
    "doubles": ("trainer.precision=64-true",),
    "half weights": ("target.dtype=bfloat16",),
    "two devices": ("trainer.devices=2",),
    "small packs": ("trainer.max_tokens=128",),
    "truncated": ("data.max_length=40", "data.on_too_long=truncate_response"),
    "no validation": ("data.validation_fraction=0", "data.validation_split=null"),
    "log-probs a token": ("reference.per_token=true",),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A configuration and a tokenizer; there are no weights to load."""
    folder = tmp_path_factory.mktemp("shape")
    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, dtype="float32", tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(target, tmp_path):
    """Overrides of a small plan for an H100."""

    def build(*more: str) -> list[str]:
        small = [
            "data=miniature", "data.limit=40", "data.validation_limit=16", "batch_size=16", "max_steps=4",
            "trainer.progress_bar=false",
        ]  # fmt: skip
        return [*small, f"target.path={target}", f"cache={tmp_path / 'cache'}", "hardware=h100", *more]

    return build


@pytest.fixture
def planned(settings):
    return lambda *more: plan(compose("plan", settings(*more)))


@pytest.mark.parametrize("hardware", PRESETS)
def test_every_hardware_is_planned_for(hardware, settings, tmp_path, capsys):
    run_verb("plan", settings(f"hardware={hardware}", f"output={tmp_path / 'out'}"))
    said = capsys.readouterr().out
    name = compose("plan", [f"hardware={hardware}"]).hardware.name
    for text in (
        "tokens computed",
        "tokens naive",
        "useful FLOPs",
        "optimiser states",
        "fits",
        f"1 x {name}",
        " of the peak rate",
    ):
        assert text in said
    report = json.loads((tmp_path / "out/plan.json").read_text())
    assert report["fits"]
    assert report["seconds"]["training"] > 0
    assert report["memory_bytes"]["peak"] >= report["memory_bytes"]["step"] > report["memory_bytes"]["overhead"]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["verb"] == "plan"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_planned(objective, planned):
    found = planned(f"objective={objective}", "target_source=qwen2")
    assert (found.amounts.reference_flops > 0) == found.uses_reference
    assert found.memory["none"].activations > 0 < found.memory["none"].head
    assert found.amounts.useful_flops > 0 < found.time.training


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_planned(name, planned):
    hardware = ("cpu", "h100")[list(SETTINGS).index(name) % 2]
    found = planned("objective=fusepo_dpo", f"hardware={hardware}", *SETTINGS[name])
    assert found.memory["none"].step > 0 < found.amounts.tokens_computed


def test_a_plan_knows_what_a_run_then_does(settings, tmp_path):
    """Tokens, steps and packs of the run; parameters, weights and optimiser states of the model that it loads."""
    shared = [
        s for s in settings("target=miniature", "objective=fusepo_dpo", "trainer.accelerator=cpu", "trainer.max_tokens=200")
        if not s.startswith(("target.path", "hardware"))
    ]  # fmt: skip
    found = plan(compose("plan", [*shared, "hardware=cpu"]))
    run = train(compose("train", [*shared, f"output={tmp_path / 'run'}", "logger=csv", "probe.prompts=0"]))
    summary = json.loads((run / "summary.json").read_text())
    amounts = found.amounts
    for name in ("steps", "prompts", "responses", "tokens_computed", "tokens_naive"):
        assert getattr(amounts, name) == summary[name], name
    assert amounts.packs > amounts.steps, "the law must hold for several packs a step"
    cfg = compose("train", shared)
    policy = load_policy(cfg.target.path, dtype=cfg.target.dtype)
    assert found.num_parameters == found.num_trained == sum(weight.numel() for weight in policy.parameters())
    assert found.memory["none"].weights == sum(part.nbytes for part in (*policy.parameters(), *policy.buffers()))
    assert found.memory["none"].optimizer == _states(policy)


def _states(policy) -> int:
    """Bytes that the run's optimiser keeps beside the weights, counters aside."""
    optimizer, _ = optim.adamw(
        policy,
        num_steps=1,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        warmup=0.0,
        decay=optim.flat,
        floor=0.0,
    )
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    states = (value for state in optimizer.state.values() for name, value in state.items() if name != "step")
    return sum(value.nbytes for value in states)


def test_another_reference_is_there_before_training(planned, target):
    alone, beside = (
        planned("objective=fusepo_dpo", f"reference.path={path}").memory["none"] for path in ("null", target)
    )
    assert beside.scoring == alone.scoring + alone.weights
    assert beside.step == alone.step
    simpo = planned("objective=fusepo_simpo", f"reference.path={target}").memory["none"]
    assert simpo.scoring == planned("objective=fusepo_simpo").memory["none"].scoring


def test_adapters_alone_have_gradients_and_states(planned, target):
    found = planned(LORA, "target.checkpointing=full")
    assert 0 < found.num_trained < found.num_parameters
    assert found.memory["full"].optimizer == 2 * 4 * found.num_trained
    assert found.memory["full"].weights > planned().memory["full"].weights


@pytest.mark.parametrize("hardware", ["cpu", "h100"])
def test_larger_packs_never_take_less_memory(hardware, planned):
    found = [planned(f"hardware={hardware}", f"trainer.max_tokens={size}").memory for size in (128, 256, 512, 1024)]
    for checkpointing in ("none", "full", "selective"):
        steps = [memory[checkpointing].step for memory in found]
        assert steps[0] < steps[-1]
        assert hardware == "cpu" or steps == sorted(steps), (
            "of a processor, where the heap has its holes is a matter of luck"
        )


def test_parts_add_up_and_checkpointing_saves_activations(planned):
    memory = planned("hardware=h100", "trainer.max_tokens=768", "target=miniature", f"target.path={MINIATURE}").memory
    for one in memory.values():
        parts = one.weights + one.optimizer + one.gradients + one.activations + one.head + one.kept + one.buckets
        assert one.step == parts + one.overhead <= one.peak
    assert memory["full"].step < memory["selective"].step < memory["none"].step


def test_ways_out_are_settings_that_help(settings, planned):
    """Each, given to `fuserl plan` on top of those before it, needs what was promised."""
    tight = ["hardware.memory_gib=0.001", "hardware.overhead_gib=0", "trainer.max_tokens=768", "objective=fusepo_dpo"]
    found = planned(*tight)
    before = found.memory["none"].peak
    own = [way for way in found.ways if not way.override.startswith("hardware")]
    assert {way.override.split("=")[0].strip("'") for way in own} >= {
        "target.checkpointing",
        "trainer.max_tokens",
        "target.dtype",
    }
    for number, way in enumerate(own):
        overrides = [one.override.strip("'") for one in own[: number + 1]]
        cfg = compose("plan", settings(*tight, *overrides))
        again = findings(cfg, data_of(cfg, "cuda")[-1], Hardware.of(cfg.hardware))
        assert again.memory[cfg.target.checkpointing].peak == way.peak < before
        before = way.peak
    larger = {way.override.removeprefix("hardware=") for way in found.ways} - {way.override for way in own}
    assert larger == {name for name in PRESETS if name != "cpu"}


def test_what_fits_needs_no_way_out(planned, capsys):
    assert not planned().ways
    assert "DOES NOT FIT" not in capsys.readouterr().out
    planned("hardware.memory_gib=0.5")
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_more_work_takes_more_time(planned):
    one, two = (planned(f"max_steps={steps}", f"plan.mfu={mfu}") for steps, mfu in ((4, 0.4), (4, 0.2)))
    longer = planned("max_steps=8", "plan.mfu=0.4")
    assert two.time.training == pytest.approx(2 * one.time.training)
    assert longer.amounts.useful_flops > one.amounts.useful_flops
    assert planned("trainer.devices=2").time.training == pytest.approx(planned().time.training / 2)
    full = planned("target.checkpointing=full", "plan.mfu=0.4")
    assert full.amounts.useful_flops == one.amounts.useful_flops
    assert full.time.training > one.time.training


def test_padded_forwards_compute_prompts_again(planned):
    shared, padded = (planned(f"trainer.packing={way}", "hardware=h100") for way in ("shared", "padded"))
    assert padded.amounts.useful_flops == shared.amounts.useful_flops
    assert padded.amounts.extra_flops > 0 == shared.amounts.extra_flops
    assert padded.time.training > shared.time.training


@pytest.mark.parametrize("padded", [False, True])
def test_the_largest_pack_is_the_largest(padded, settings):
    cfg = compose("plan", settings("trainer.max_tokens=256", "objective=fusesft"))
    *_, prepared = data_of(cfg, "cpu")
    split = prepared.train

    def size(batch) -> int:
        rows = [int(s.end - s.start + s.prompt[1] - s.prompt[0]) for s in batch.segments if not s.is_prompt]
        return len(rows) * max(rows) if padded else sum(s.end - s.start for s in batch.segments)

    packs = [
        split.pack(step, place, 0) for step in range(split.plan.steps) for place in range(split.plan.packs_per_step)
    ]
    assert size(largest_pack(split, padded=padded)) == max(map(size, packs))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hardware=b300"], "b300"),
        (["plan.mfu=0"], "no share of a rate"),
        (["plan.mfu=1.5"], "no share of a rate"),
        (["plan.mfuu=1"], "did you mean `plan.mfu`"),
        (["hardware.memory_gib=-3"], "hardware.memory_gib"),
        (["target.checkpointing=some"], "no activation checkpointing `some`"),
        (["target.dtype=float7"], "no dtype `float7`"),
        (["target.lora={rank: 3}"], "LoRA cannot be set up"),
        (["target.path=nowhere/at-all"], "cannot be loaded"),
        (["trainer.max_tokens=8"], "a pack may have 8"),
    ],
)
def test_mistakes_are_told_clearly(overrides, said, settings):
    with pytest.raises(FuserlError, match=said):
        run_verb("plan", settings(*overrides))


def test_a_folder_that_cannot_be_written_is_told(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FuserlError, match="output folder cannot be written"):
        run_verb("plan", settings(f"output={tmp_path / 'file' / 'x'}"))


def test_an_adapter_is_planned_as_its_base(planned, target, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(target, folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(target)}))
    assert planned(f"target.path={folder}").num_parameters == planned().num_parameters


def test_a_heap_uses_its_room_again():
    heap = Heap(lived_in=0.5)
    for block in range(100):
        heap.take(block, 1000)
    whole = heap.top
    for block in range(0, 100, 2):
        heap.give(block)
    for block in range(200, 250):
        heap.take(block, 1000)
    assert heap.top == whole, "holes are as large as what was there"
    for block in [*range(1, 100, 2), *range(200, 250)]:
        heap.give(block)
    heap.take(300, whole - 100)
    assert heap.top == whole, "neighbours are joined"


def test_a_growing_graph_leaves_holes_that_go_with_it():
    def step(heap: Heap, first: int) -> None:
        heap.grows = True
        for block in range(first, first + 300, 3):  # what is kept, between what is not
            for number in range(3):
                heap.take(block + number, 10_000)
            heap.give(block + 1)
            heap.give(block + 2)

    tops = {}
    for share in (0.0, 0.5, 1.0):
        heap = Heap(lived_in=share)
        step(heap, 0)
        tops[share] = heap.top
        heap.settle()
        for block in range(0, 300, 3):
            heap.give(block)
        step(heap, 300)
        assert heap.top == tops[share], "the next step finds all room again"
    assert tops[0.0] < tops[0.5] < tops[1.0]


def test_what_fsdp2_cuts_up_is_divided_and_what_it_gathers_is_not(planned, settings):
    """By its formula, from the model's own weights; the whole model is never there."""
    whole, cut = (planned("trainer.devices=4", *more).memory["none"] for more in ((), ("trainer=fsdp2",)))
    policy = Model(compose("plan", settings("trainer.devices=4")), "none")
    root = policy.bytes - sum(policy.layer_bytes)
    assert root > 0
    assert len(policy.layer_bytes) == policy.policy.config.num_hidden_layers
    gathered = 2 * max(policy.layer_bytes) + root
    assert cut.weights == policy.bytes // 4 + gathered
    assert cut.optimizer == 2 * (policy.trained_bytes // 4)
    assert cut.buckets == 0 < whole.buckets
    assert cut.activations == whole.activations
    assert cut.export == policy.bytes // 4
    assert cut.peak == cut.step < cut.overhead + whole.step
    many = planned("trainer.devices=8", "trainer=fsdp2").memory["none"]
    assert many.weights < cut.weights
    assert many.weights > gathered


def test_a_run_that_does_not_fit_is_told_of_sharing(planned):
    """Where weights, and not activations, are what is too much."""
    several = ("trainer.devices=64", "target.checkpointing=full", "hardware.overhead_gib=0")
    peak = planned(*several).memory["full"].peak
    found = planned(*several, f"hardware.memory_gib={0.999 * peak / 2**30}")
    assert not found.fits
    cut = planned(*several, "trainer=fsdp2").memory["full"].peak
    shown = [way for way in found.ways if way.override == "trainer=fsdp2"]
    assert [way.peak for way in shown] == ([cut] if cut < peak else [])

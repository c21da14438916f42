"""The arithmetic of docs/scale.md: every line comes to what it says, and to what the plan's code reckons."""

from __future__ import annotations

import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig
from uniform import Uniform

from fuserl.records.schema import PromptGroup
from fuserl.settings import compose
from fuserl.tokens.store import TokenWriter
from fuserl.training.estimate import Amounts, amounts_of, time_of
from fuserl.training.hardware import Hardware
from fuserl.training.memory import Memory, Model, cut_up
from fuserl.training.setup import data_of
from fuserl.training.strategies import gathered_in
from fuserl.training.summary import tokens_naive

PAGE = (kit.ROOT / "docs/scale.md").read_text()
LINE = re.compile(r"^([a-z][\w ]*?)\s{2,}(\S.*?)\s+= ([\d.e]+)$", re.MULTILINE | re.IGNORECASE)
WIDTHS: dict[str, dict[str, Any]] = {
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
    "70b": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
}
NOTHING = Memory(*[0] * 10)


def lines(title: str) -> dict[str, tuple[str, float]]:
    """Name -> (formula, number) of a section."""
    section = PAGE.split(f"\n### {title}\n")[1].split("\n##")[0]
    return {name: (formula, float(number)) for name, formula, number in LINE.findall(section)}


def told(title: str) -> dict[str, float]:
    return {name: number for name, (_, number) in lines(title).items()}


@pytest.mark.parametrize("title", ["8 B on 8 x H100", "70 B", "10 M responses"])
def test_every_line_comes_to_its_number(title):
    found = lines(title)
    assert len(found) >= 4
    known: dict[str, str] = {}
    for name, (formula, number) in found.items():
        for other in sorted(known, key=len, reverse=True):
            formula = re.sub(rf"\b{other}\b", f"({known[other]})", formula)
        assert not re.search(r"[a-z]", formula.replace("ceil", "").replace("e12", "").replace("e9", "")), formula
        known[name] = formula
        value = eval(formula, {"ceil": ceil})
        assert value == pytest.approx(number, rel=6e-4 if "e" in str(number) else 0, abs=0.0051), name


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """`planned(size, *settings)` -> model, amounts, hours, a device's share, for 60,000 prompts of the page."""

    def go(size: str, *more: str) -> tuple[Model, Amounts, Any, Memory]:
        folder = tmp_path / size
        AutoTokenizer.from_pretrained(kit.ROOT / "src/fuserl/miniature/target").save_pretrained(folder)
        LlamaConfig(
            vocab_size=128256, num_key_value_heads=8, max_position_embeddings=8192, dtype="bfloat16", **WIDTHS[size]
        ).save_pretrained(folder)
        stores = iter([Uniform(tmp_path / "store", 60_000, 4, 256, 512), Uniform(tmp_path / "store", 128, 4, 256, 512)])
        monkeypatch.setattr("fuserl.training.prepare.tokens_of", lambda *_, **__: next(stores))
        shared = ["data=miniature", "probe.prompts=0", f"cache={tmp_path}", "hardware=h100", "data.max_length=4096"]
        shared += ["batch_size=128", "trainer=fsdp2", "trainer.devices=8", "target.checkpointing=full"]
        cfg = compose("plan", [*shared, f"target.path={folder}", *more])
        *_, prepared = data_of(cfg, "cuda")
        hardware, ranks = Hardware.of(cfg.hardware), prepared.train.plan.ranks
        model = Model(cfg, "full")
        amounts = amounts_of(cfg, model, prepared, tokens_naive(prepared))
        time = time_of(amounts, hardware.rate(cfg.trainer.precision, model.dtype), cfg.plan.mfu, ranks)
        whole = replace(NOTHING, gradients=model.trained_bytes)
        return model, amounts, time, cut_up(whole, model, ranks, hardware, gathered_in(cfg))

    return go


FP32 = ("target.dtype=float32", "trainer.precision=bf16-mixed")


def test_8b_as_the_plan_reckons_it(planned):
    page = told("8 B on 8 x H100")
    model, sft, time, memory = planned("8b", "objective=fusesft", "max_epochs=3", *FP32)
    for name, value in {
        "parameters": model.num_parameters, "matrices": model.products.matrices, "layer": model.layer_bytes[0] / 4,
        "sft steps": sft.steps, "sft tokens": sft.tokens_computed, "sft naive": sft.tokens_naive,
        "sft head": sft.tokens_trained, "sft pairs": sft.attended_pairs,
    }.items():  # fmt: skip
        assert page[name] == value, name
    assert page["sft useful"] == pytest.approx(sft.useful_flops, rel=1e-3)
    assert page["sft again"] == pytest.approx(sft.extra_flops, rel=1e-3)
    gigabytes = {
        "weights GB": memory.weights, "gradients GB": memory.gradients, "moments GB": memory.optimizer,
        "checkpoint GB": sft.checkpoint_bytes, "model GB": sft.model_bytes,
    }  # fmt: skip
    for name, value in gigabytes.items():
        assert page[name] == pytest.approx(value / 1e9, abs=0.0051), name
    assert page["sft hours"] == pytest.approx(time.training / 3600, abs=0.0051)
    _, dpo, time, _ = planned("8b", "objective=fusepo_dpo", "pairs=across_sources", *FP32)
    assert (page["dpo steps"], page["dpo tokens"], page["dpo pairs"]) == (
        dpo.steps,
        dpo.tokens_computed,
        dpo.attended_pairs,
    )
    assert page["dpo useful"] == pytest.approx(dpo.useful_flops, rel=1e-3)
    assert page["dpo hours"] == pytest.approx(time.training / 3600, abs=0.0051)
    assert page["dpo reference"] == pytest.approx(time.reference / 3600, abs=0.0051)
    assert page["dpo cache"] == pytest.approx(dpo.reference_cache_bytes, rel=3e-3), "which counts what is held out, too"


def test_70b_as_the_plan_reckons_it(planned):
    page = told("70 B")
    model, amounts, time, memory = planned("70b", "objective=fusesft", "max_epochs=3", "trainer.nodes=4", *FP32)
    assert (page["parameters"], page["matrices"]) == (model.num_parameters, model.products.matrices)
    assert (page["sft tokens"], page["sft pairs"]) == (amounts.tokens_computed, amounts.attended_pairs)
    assert page["sft useful"] == pytest.approx(amounts.useful_flops, rel=1e-3)
    assert page["sft again"] == pytest.approx(amounts.extra_flops, rel=1e-3)
    assert page["hours on 32"] == pytest.approx(time.training / 3600, abs=0.0051)
    assert page["weights on 32"] == pytest.approx(memory.weights / 1e9, abs=0.0051)
    assert page["moments on 32"] == pytest.approx(memory.optimizer / 1e9, abs=0.0051)
    assert page["checkpoint GB"] == pytest.approx(amounts.checkpoint_bytes / 1e9, abs=0.0051)
    *_, time, memory = planned("70b", "objective=fusesft", "max_epochs=3", "target.dtype=bfloat16")
    assert page["hours on 8"] == pytest.approx(time.training / 3600, abs=0.0051)
    assert page["weights on 8"] == pytest.approx(memory.weights / 1e9, abs=0.0051)
    assert page["moments on 8"] == pytest.approx(memory.optimizer / 1e9, abs=0.0051)


def test_bytes_of_a_store(tmp_path):
    """What a prompt and a response add to a store's files, tokens and ids aside."""

    def size(prompts: int, answers: int) -> int:
        folder = tmp_path / f"{prompts}-{answers}"
        with TokenWriter(folder) as writer:
            for number in range(prompts):
                group = kit.random_groups(1, 1, answers)[0]
                branches = [np.array([number, column], np.int32) for column in range(answers)]
                named = PromptGroup(f"{number:04}", group.prompt, group.responses)
                writer.add(named, np.array([7], np.int32), branches, [0] * answers)
            writer.close()
        return sum(path.stat().st_size for path in Path(folder).glob("*.npy"))

    one, more, wider = size(10, 4), size(110, 4), size(10, 14)
    assert wider - one == 10 * 10 * (62 + 2 * 4)
    assert more - one == 100 * (24 + 4 + 4 + 4 * (62 + 2 * 4))

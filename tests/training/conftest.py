"""A tiny target on disk and a function that trains it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kit
import pytest
import torch
from forking import Nursery
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

from fuserl.settings import compose
from fuserl.training.run import train


@pytest.fixture(scope="session")
def target(tmp_path_factory) -> Path:
    """A random GPT-NeoX in fp64 (its norms stay in fp64, so whole runs compare exactly) with the miniature's tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    tokenizer = AutoTokenizer.from_pretrained(kit.ROOT / "src/fuserl/miniature/target")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).double().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """A process with everything imported, whose children are ranks, launch them, or are killed."""
    imports = ("training.ranks", "transformers.models.gpt_neox", "torch.distributed.checkpoint.hf_storage")
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), *imports, paths=[kit.ROOT / "tests"])
    yield nursery
    nursery.close()


SMALL = (
    "data=miniature", "data.limit=40", "data.validation_limit=16", "batch_size=16", "max_steps=4", "optimizer.lr=1e-2", "logger=csv",
    "target.dtype=float64", "trainer.precision=64-true", "trainer.progress_bar=false", "trainer.accelerator=cpu",
    "trainer.val_every=2", "checkpoint.every=1", "trainer.timeout=120", "trainer.log_every=1", "probe.prompts=0", "objective.normalize=length",
)  # fmt: skip


@pytest.fixture
def settings(target, tmp_path):
    """`settings(objective, *more)`: overrides of a small exact run; output is tmp_path/run."""

    def build(objective: str, *more: str, output: str = "run") -> list[str]:
        small = [
            s
            for s in SMALL
            if not (s.startswith("objective.") and objective in ("fusepo_simpo", "fusepo_rloo", "wrpo"))
        ]
        return [
            *small,
            f"objective={objective}",
            f"target.path={target}",
            f"output={tmp_path / output}",
            f"cache={tmp_path / 'cache'}",
            *more,
        ]

    return build


@pytest.fixture
def run(settings):
    """`run(objective, *more)` trains in this process and gives the folder."""

    def go(objective: str, *more: str, output: str = "run") -> Path:
        return train(compose("train", settings(objective, *more, output=output)))

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the exported model."""
    return load_file(folder / "model" / "model.safetensors")

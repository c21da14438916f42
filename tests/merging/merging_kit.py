"""Tiny models of one shape, merges of them, and methods spelt out element by element."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fuserl.merging.checkpoint import Checkpoint
from fuserl.merging.merge import merge
from fuserl.settings import compose

CONFIG = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SHARD = "12KB"  # of the models that are written: several files each


def random_model(seed: int = 0, *, dtype: torch.dtype = torch.float32, noise: float = 0.05, **changed: Any) -> Any:
    """A small Llama; those of one seed are equal but for what `noise` with seed + 1 adds."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG | changed))
    if seed:
        random = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data.add_(noise * torch.randn(weight.shape, generator=random))
    return model.to(dtype)


def save(model: Any, folder: Path, shard: str = SHARD) -> Path:
    """As transformers writes it, with a tokenizer file and a chat template beside it."""
    model.save_pretrained(folder, max_shard_size=shard)
    vocab = {f"t{number}": number for number in range(model.config.vocab_size)}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
        "added_tokens": [],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    return folder


def family(folder: Path, experts: str = "abc", *, shard: str = SHARD, **settings: Any) -> list[str]:
    """`base` and experts in a folder; returns the overrides that name them."""
    save(random_model(0, **settings), folder / "base", shard)
    for number, name in enumerate(experts, 1):
        save(random_model(number, **settings), folder / name, shard)
    return overrides(folder, experts)


def overrides(folder: Path, experts: Sequence[str]) -> list[str]:
    """Base and experts of a folder."""
    return [f"base={folder / 'base'}", f"experts=[{','.join(str(folder / name) for name in experts)}]"]


def merged(given: Sequence[str], output: Path, *more: str) -> Path:
    """`fuserl merge`; what comes out is loaded only where a test asks for it with `reload_gb`."""
    return merge(compose("merge", [*given, f"output={output}", "reload_gb=0", *more]))


def tensors(folder: Path) -> dict[str, Tensor]:
    """All of a model folder."""
    checkpoint = Checkpoint(folder, "it")
    return {name: checkpoint.read(name).clone() for name in checkpoint.places}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object], config: dict[str, Any] | None = None) -> None:
    """Change a folder's tensors and configuration; one file afterwards."""
    content = tensors(folder)
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    change(content)
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))


def literal_sce(deltas: Tensor, select: float, variant: str) -> tuple[list[float], list[float]]:
    """The table of the paper's and the codes' steps, one element after the other: (merged delta, η)."""
    rows = deltas.reshape(len(deltas), -1).tolist()
    experts, places = range(len(rows)), range(len(rows[0]))
    means = [sum(row[p] for row in rows) / len(rows) for p in places]
    spread = [sum((row[p] - means[p]) ** 2 for row in rows) / len(rows) for p in places]
    for p in places:
        if len({row[p] for row in rows}) == 1:
            spread[p] = 0.0
    count = len(places) if select >= 1 else math.floor(select * sum(value > 0 for value in spread) + 1e-9)
    chosen = set(sorted(places, key=lambda p: (-spread[p], p))[:count])
    masked = [[row[p] if p in chosen else 0.0 for p in places] for row in rows]
    energy = [sum(value**2 for value in row) for row in masked]
    flat = sum(energy) / len(places) < 1e-6 if variant == "mergekit" else sum(energy) == 0
    eta = [1 / len(rows) if flat else value / sum(energy) for value in energy]
    used = rows if variant == "authors_code" else masked
    out = []
    for p in places:
        total = sum(row[p] for row in used)
        sign = (total > 0) - (total < 0) if variant == "paper" else (1 if total >= 0 else -1)
        agree = [j for j in experts if (used[j][p] > 0) - (used[j][p] < 0) == sign]
        value, divisor = sum(eta[j] * used[j][p] for j in agree), sum(eta[j] for j in agree)
        if variant == "mergekit":
            value /= max(divisor, 1e-6)
        if variant == "authors_code":
            value /= divisor or 1
        out.append(value)
    return out, eta

"""What tests share: where real data lies, tiny real models, small groups of tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models import cohere, gemma2, gpt_neox, granite, llama, mistral, olmo2, phi3, qwen2, qwen3

from fuserl.models import attention, load
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.store import TokenStore, TokenWriter

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 64
_SHAPE: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "llama": lambda: llama.LlamaConfig(**_SHAPE),
    "qwen2": lambda: qwen2.Qwen2Config(**_SHAPE),
    "qwen3": lambda: qwen3.Qwen3Config(**_SHAPE, head_dim=8),
    "gemma2": lambda: gemma2.Gemma2Config(**_SHAPE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8),
    "mistral": lambda: mistral.MistralConfig(**_SHAPE, sliding_window=5),
    "phi3": lambda: phi3.Phi3Config(**_SHAPE),
    "gpt_neox": lambda: gpt_neox.GPTNeoXConfig(
        **{k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"}, rotary_pct=0.5
    ),
    "olmo2": lambda: olmo2.Olmo2Config(**_SHAPE),
    "cohere": lambda: cohere.CohereConfig(**_SHAPE, logit_scale=0.3),
    "granite": lambda: granite.GraniteConfig(**_SHAPE, logits_scaling=3.0, residual_multiplier=0.5),
}


def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FUSERL_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set FUSERL_SHARED")
    return folder


def tiny_model(name: str = "llama", dtype: torch.dtype = torch.float64) -> Any:
    """About 20 k random parameters of a real architecture, with our attention."""
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").to(dtype)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.add_(0.1 * torch.randn_like(weight))
    load._use_our_attention(model)
    load._without_dropout(model)
    return model


def random_groups(num: int = 3, sources: int = 2, samples: int = 2, seed: int = 0) -> list[PromptGroup]:
    """Groups whose texts are numbers, with distinct rewards."""
    rng = np.random.default_rng(seed)
    return [
        PromptGroup(
            f"p{g}",
            (Message("user", f"{g}"),),
            tuple(
                Response(f"s{s}", f"{rng.integers(1000)}", n, float(np.round(rng.normal(), 3)))
                for s in range(sources)
                for n in range(samples)
            ),
            domain=f"d{g % 2}",
        )
        for g in range(num)
    ]


def token_store(
    folder: Path, groups: list[PromptGroup] | None = None, *, seed: int = 0, longest: int = 12
) -> TokenStore:
    """Random token ids for groups, without a tokenizer."""
    groups = groups or random_groups()
    rng = np.random.default_rng(seed)
    sources = sorted({response.source for group in groups for response in group.responses})
    writer = TokenWriter(folder / f"tokens-{seed}-{len(groups)}", sources)
    for group in groups:
        ids = [
            rng.integers(3, VOCABULARY, rng.integers(2, longest)).astype(np.int32)
            for _ in range(1 + len(group.responses))
        ]
        writer.add(group, ids[0], ids[1:], [0] * len(group.responses))
    return writer.close()


class KeepDouble(torch.overrides.TorchFunctionMode):
    """Model code upcasts norms and softmaxes to fp32, which in fp64 is a loss: keep doubles double, for exact tests."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if tensor is not None and tensor.dtype == torch.float64:
            to_single = function is torch.Tensor.to and len(args) > 1 and args[1] is torch.float32
            if function is torch.Tensor.float or to_single:
                return tensor
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)

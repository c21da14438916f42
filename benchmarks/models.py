"""Random models of real shapes: for speed the weights do not matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.kit import DATA
from fuserl.models import attention, load
from fuserl.tokens.templates import PLAIN

END = "<|endoftext|>"
_COMMON: dict[str, Any] = dict(
    max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None, pad_token_id=None
)


def _llama(layers: int, width: int, inner: int, heads: int, key_heads: int, vocabulary: int = 50257) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, **_COMMON,
    )  # fmt: skip


def _qwen(layers: int, width: int, inner: int, heads: int, key_heads: int, vocabulary: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, **_COMMON,
    )  # fmt: skip


# name: layers, width, inner width, heads, key heads, vocabulary
SIZES: dict[str, Callable[[], PretrainedConfig]] = {
    "toy": lambda: _llama(2, 64, 96, 4, 2),
    "tiny": lambda: _llama(6, 384, 1024, 6, 6),
    "small": lambda: _llama(12, 768, 2048, 12, 12),  # GPT-2's shape
    "0.5b": lambda: _qwen(24, 896, 4864, 14, 2, 151936),  # Qwen2.5-0.5B
    "1b": lambda: _llama(16, 2048, 8192, 32, 8, 128256),  # Llama-3.2-1B
    "3b": lambda: _llama(28, 3072, 8192, 24, 8, 128256),  # Llama-3.2-3B
}


def config_of(size: str) -> PretrainedConfig:
    """The shape of that name.

    Raises:
        SystemExit: there is none.
    """
    if size not in SIZES:
        raise SystemExit(f"there is no size `{size}`; one of {', '.join(SIZES)}")
    return SIZES[size]()


def tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's, with the template `plain`: prompt, newline, answer, end of text."""
    path = DATA / "tokenizers/gpt2/tokenizer.json"
    if not path.exists():
        raise SystemExit(f"{path} is needed; FUSERL_SHARED names the folder that holds `data/`")
    found = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END, pad_token=END)
    found.chat_template = PLAIN
    return found


def save_model(folder: Path, size: str, dtype: torch.dtype) -> Path:
    """A random model with its tokenizer as a Hugging Face folder."""
    torch.manual_seed(0)
    words, config = tokenizer(), config_of(size)
    config.eos_token_id = words.eos_token_id
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def random_model(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The same in memory, with attention over packs."""
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(size), dtype=dtype).to(device)
    load._use_our_attention(model)
    load._without_dropout(model)
    return model.train()

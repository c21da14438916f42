"""Small models of three architectures and tokenizers, hard texts, and `align` in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from fuserl.distributions.align import align
from fuserl.distributions.collect import Read
from fuserl.distributions.topk import TopK
from fuserl.settings import compose

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GROUPS = {
    "How much is 3 and 4?": ["It is 7.", "It is 7.", "3 + 4 = 7, so it is seven", "."],
    "Say </s> and <|im_end|>": ["</s>", "I end with <|im_end|> and </s><|endoftext|>.", " \n two lines\n\n"],
    "Grüße 🙂": ["🙂👩‍👩‍👧 naïve", "数学は楽しい。", "e\u0301 and é"],
    "Which is it?": ["It is seven", "the seventh seven is it"],
}
WORDS = " ".join([*GROUPS, *(text for texts in GROUPS.values() for text in texts)]) + " assistant\nuser\nseventh <it> "
MODELS = ("target", "pieces", "bytes")
SHAPE: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
    initializer_range=0.3,
)  # fmt: skip


def byte_level(size: int, controls: list[str], **settings: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's and Qwen's."""
    backend = Tokenizer(kinds.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=controls, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    backend.train_from_iterator([WORDS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def pieces() -> PreTrainedTokenizerFast:
    """Pieces with a mark for spaces and single bytes for what is none, as Llama-2's: BOS before every text."""
    controls = ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(kinds.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=380, special_tokens=[*controls, *fallback], limit_alphabet=28, show_progress=False)
    backend.train_from_iterator(WORDS.split() * 3, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in controls]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _saved(folder: Path, config: Any, tokenizer: Any, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@lru_cache(1)
def made(root: Path) -> dict[str, Path]:
    """Folders by name."""
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ends = {"eos_token": chat[0], "pad_token": chat[0]}
    tokenizers = {
        "target": byte_level(330, chat, chat_template=CHATML, **ends),
        "pieces": pieces(),
        "bytes": byte_level(400, chat[:1], **ends),
    }
    configs = {
        "target": LlamaConfig(vocab_size=336, num_key_value_heads=2, **SHAPE),  # some ids are padding
        "pieces": GPTNeoXConfig(vocab_size=len(tokenizers["pieces"]), **SHAPE),
        "bytes": Qwen2Config(vocab_size=len(tokenizers["bytes"]), num_key_value_heads=2, **SHAPE),
    }
    return {name: _saved(root / name, configs[name], tokenizers[name], seed) for seed, name in enumerate(MODELS)}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A target, pieces with byte fallback, another byte-level BPE without control tokens of chats."""
    root = tmp_path_factory.getbasetemp() / "models_of_align"
    root.mkdir(exist_ok=True)
    return made(root)


def write_data(path: Path, groups: dict[str, list[str]] = GROUPS) -> Path:
    """One group a prompt; rewards fall."""
    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt": prompt,
            "responses": [{"source": "s", "text": t, "reward": -float(n)} for n, t in enumerate(texts)],
        }
        for number, (prompt, texts) in enumerate(groups.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overrides(models: dict[str, Path], data: Path, folder: Path, *more: str, sources=("pieces", "bytes")) -> list[str]:
    """Settings of a small run: all responses, on a processor."""
    return [
        "data=own", f"data.path={data}", "data.validation_fraction=0", f"target.path={models['target']}",
        *(f"+sources.{name}.path={models[name]}" for name in sources), "target.dtype=float32", "collector.device=cpu",
        "size=10", "progress_bar=false", f"cache={folder / 'cache'}", f"output={folder / 'out'}", *more,
    ]  # fmt: skip


def run(settings: list[str]) -> Path:
    """The verb."""
    return align(compose("align", settings))


class Certain:
    """A collector that needs no model: every model puts all mass on the label, or on the token before it.

    The target reads worse than the others, so that theirs is taken.
    """

    max_tokens = 100

    def __init__(self, *, late: int = 0, **_: Any) -> None:
        self.late = late

    def identity(self) -> dict[str, Any]:
        return {"by": "hand", "late": self.late}

    @contextmanager
    def opened(self, reader: Any, k: int) -> Iterator[Any]:
        yield _Certain(self.late, 1.0 if reader.model.name == "target" else 0.5)


class _Certain:
    def __init__(self, late: int, nats: float) -> None:
        self.late, self.nats = late, nats

    def read(self, store: Any, rows: Any, used: Any) -> Iterator[Read]:
        for row in rows:
            for column in np.flatnonzero(used[row]).tolist():
                ids = np.concatenate([store.prompt(row), store.branch(row, column)]).astype(np.int64)
                count = int(store.num_tokens[row, column])
                said = ids[len(ids) - count - self.late : len(ids) - self.late, None]
                ce, tail = np.full(count, self.nats), np.full(count, -np.inf)
                yield Read(row, column, TopK(said, np.zeros(said.shape)), ce, tail)


def like_target(models: dict[str, Path], folder: Path, *, more_tokens: int = 0, weights: float | None = None) -> Path:
    """The target again, with more tokens, or with all its weights set."""
    shutil.copytree(models["target"], folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<|more {number}|>" for number in range(more_tokens)])
    tokenizer.save_pretrained(folder)
    file = folder / "model.safetensors"
    state = load_file(file)
    state["lm_head.weight"][330:] = 0.0  # more tokens are not expected
    if weights is not None:
        state = {name: torch.full_like(weight, weights) for name, weight in state.items()}
    save_file(state, file, {"format": "pt"})
    return folder

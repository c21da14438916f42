"""Two small sources of different architecture and tokenizer, trained for a moment so that they answer and stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from fuserl.models.load import load_tokenizer
from fuserl.records.formats import read_groups
from fuserl.settings import compose
from fuserl.training.run import train

MINIATURE = kit.ROOT / "src/fuserl/miniature"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.05,
)  # fmt: skip
STEPS = 80


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 400 entries, with ChatML as template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [text for group in read_groups(MINIATURE / "data/validation.jsonl.gz") for text in _texts(group)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def _texts(group: Any) -> list[str]:
    return [group.prompt[-1].content, *(response.text for response in group.responses)]


def llama(work: Path) -> Path:
    """A Llama with the miniature's tokenizer of characters."""
    tokenizer = load_tokenizer(str(MINIATURE / "target"))
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **SHAPE)
    return _trained(work / "llama", config, tokenizer)


def qwen3(work: Path) -> Path:
    """A Qwen-3 with a tokenizer of bytes, whose turns end with another token than its texts."""
    tokenizer = bytes_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=0, pad_token_id=0, **SHAPE)
    return _trained(work / "qwen3", config, tokenizer)


def _trained(folder: Path, config: Any, tokenizer: Any) -> Path:
    """Trained by `fuserl train`; and a generation_config beside it that must decide nothing."""
    raw = folder.with_name(folder.name + "-raw")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    settings = (
        "data=miniature", "objective=sft_best", f"target.path={raw}", f"output={folder}", f"cache={folder}-cache",
        f"max_steps={STEPS}", "max_epochs=100", "batch_size=48", "optimizer.lr=5e-3", "target.dtype=float32",
        f"trainer.val_every={STEPS}", "trainer.accelerator=cpu", "trainer.progress_bar=false", "logger=csv", "probe.prompts=0",
    )  # fmt: skip
    model = train(compose("train", list(settings))) / "model"
    misleading = {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 2.0, "max_new_tokens": 1}
    (model / "generation_config.json").write_text(json.dumps(misleading | {"do_sample": True, "eos_token_id": 5}))
    return model

"""Tiny reward models of several families, with a tokenizer of characters that pads with its end of turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.models import bert, gemma2, gpt2, llama, qwen2

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.made import made
from fuserl.rewards.protocol import Item
from fuserl.rewards.reward_model import RewardModel
from fuserl.settings import compose, plain

SPECIALS = ["<bos>", "<start>", "<end>", "<pad>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<start>{{ m['role'] }}\n{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
GATE = "<end><start>assistant\n"
_SHAPE: dict[str, Any] = dict(
    vocab_size=105, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=200, initializer_range=0.2, pad_token_id=2, bos_token_id=0, eos_token_id=2, num_labels=1,
)  # fmt: skip
FAMILIES = {
    "llama": lambda: llama.LlamaConfig(**_SHAPE, num_key_value_heads=2),
    "qwen2": lambda: qwen2.Qwen2Config(**_SHAPE, num_key_value_heads=2),
    "gemma2": lambda: gemma2.Gemma2Config(**_SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=6),
    "gpt2": lambda: gpt2.GPT2Config(
        vocab_size=105, n_embd=32, n_layer=2, n_head=4, n_positions=200, initializer_range=0.2,
        pad_token_id=2, bos_token_id=0, eos_token_id=2, num_labels=1, resid_pdrop=0.1,
    ),
    "bert": lambda: bert.BertConfig(**_SHAPE),
}  # fmt: skip


@lru_cache
def tokenizer(pairs: bool = False) -> PreTrainedTokenizerFast:
    """A token a character; for pairs it joins two texts as BERT's does."""
    characters = [*SPECIALS, "\n", *map(chr, range(32, 127)), "<unk>"]
    backend = Tokenizer(models.BPE({c: n for n, c in enumerate(characters)}, [], unk_token="<unk>"))
    if pairs:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A <end>", pair="<bos> $A <end> $B <end>", special_tokens=[("<bos>", 0), ("<end>", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<end>", pad_token="<end>", unk_token="<unk>",
        additional_special_tokens=SPECIALS,
    )  # fmt: skip
    made.chat_template = CHAT
    return made


def save(family: str, folder: Path, *, seed: int = 0, **shape: int) -> Path:
    """A model with random weights, large enough that scores differ; perhaps of another shape."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.update(shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer(pairs=family == "bert").save_pretrained(folder)
    return folder


def load(folder: Path, *overrides: str, reward: str = "reward_model") -> RewardModel:
    """The scorer of the configuration."""
    where = [f"reward={reward}", "data.path=x", f"rewards.{reward}.path={folder}"]
    nodes = plain(compose("score", [*where, *(o.replace("@.", f"@rewards.{reward}.") for o in overrides)]))["rewards"]
    node = {key: value for key, value in nodes[reward].items() if key != "domains"}
    return made({"name": reward} | node, reward)


def items(texts: Sequence[str], prompt: Sequence[Message] = (Message("user", "What is 2 + 2?"),)) -> list[Item]:
    """An item a text; keys are their places."""
    group = PromptGroup("p", tuple(prompt), tuple(Response("s", text, n) for n, text in enumerate(texts)))
    return [Item(str(n), group, response) for n, response in enumerate(group.responses)]


@torch.no_grad()
def oracle(folder: Path, ids: Sequence[int]) -> float:
    """Slow and plain: one conversation, no padding; the head on the last token's hidden state, or on BERT's pooled one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    row = torch.tensor([list(ids)])
    if model.base_model_prefix == "bert":
        return model.classifier(model.bert(row).pooler_output).item()
    return model.score(model.base_model(row).last_hidden_state[0, -1]).item()

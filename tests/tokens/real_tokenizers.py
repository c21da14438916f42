"""Tokenizers of real models crossed with chat templates of real models, built without a network."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kit
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.llama import LlamaTokenizerFast

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.templates import Template, load_template

_NUMBERS = r"\p{N}{1,3}"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = ("gpt2", "falcon", "gpt_neox", "olmo_dolma2", "phi3", "llama3", "qwen", "llama2", "mistral")
SENTENCEPIECE = ("phi3", "llama2", "mistral")
# template file -> its special tokens, bos (None: the template prints none), eos
TEMPLATES: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "Qwen-Qwen2.5-7B-Instruct": (("<|im_start|>", "<|im_end|>"), None, "<|im_end|>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "google-gemma-2-2b-it": (("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"), "<bos>", "<eos>"),
    "meta-llama-Llama-3.1-8B-Instruct": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin_of_text|>", "<|eot_id|>"),
    "microsoft-Phi-3.5-mini-instruct": (("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), None, "<|endoftext|>"),
    "mistralai-Mistral-Nemo-Instruct-2407": (("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"),
}  # fmt: skip
# two templates for each tokenizer, every template with two or three tokenizers
PAIRS = [
    (name, list(TEMPLATES)[(2 * number + k) % len(TEMPLATES)]) for number, name in enumerate(TOKENIZERS) for k in (0, 1)
]
END_OF_TURN = {
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "<｜end▁of▁sentence｜>",
    "google-gemma-2-2b-it": "<end_of_turn>",
    "meta-llama-Llama-3.1-8B-Instruct": "<|eot_id|>",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>",
    "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
}
TEXTS = (
    "Hello",
    " leading space",
    "  two spaces",
    "\n\nnewlines\n",
    "\tcode:\n    return 1\n",
    "数学は楽しい。",
    "🙂🙃👩‍👩‍👧 emoji",
    "1234567 + 89",
    " ",
    "\n",
    "trailing  ",
    "é vs e\u0301",
    "</s",
    "<|",
    "▁",
)


def _from_ranks(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE out of tiktoken's `token rank` lines."""
    file, numbers = {"llama3": ("tokenizer.model", _NUMBERS), "qwen": ("qwen.tiktoken", r"\p{N}")}[name]
    path = kit.shared_data() / "tokenizers" / name / file
    converter = TikTokenConverter(
        vocab_file=str(path), pattern=_SPLIT.replace("NUMBERS", numbers), extra_special_tokens=[]
    )
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted())


def _load(name: str) -> Any:
    data = kit.shared_data() / "tokenizers"
    if name in ("llama3", "qwen"):
        return _from_ranks(name)
    if name == "llama2":
        return LlamaTokenizerFast.from_pretrained(str(data / name))
    if name == "mistral":
        with TemporaryDirectory() as folder:  # the loader wants the file by its usual name
            shutil.copy(data / name / "tokenizer.model.v3", Path(folder) / "tokenizer.model")
            return LlamaTokenizerFast.from_pretrained(folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(data / name / "tokenizer.json"))


@lru_cache
def bare(name: str) -> Any:
    """The tokenizer as published."""
    return _load(name)


@lru_cache
def with_every_special(name: str) -> Any:
    """The tokenizer with the special tokens of all templates."""
    tokenizer = _load(name)
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    strings = sorted({string for specials, _, _ in TEMPLATES.values() for string in specials} - known)
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in strings], special_tokens=True)
    return tokenizer


def template(tokenizer_name: str, template_name: str) -> Template:
    """A pair. The tokenizer is shared between pairs, so use one pair at a time."""
    tokenizer = with_every_special(tokenizer_name)
    _, tokenizer.bos_token, tokenizer.eos_token = TEMPLATES[template_name]
    return _template(tokenizer_name, template_name)


@lru_cache
def _template(tokenizer_name: str, template_name: str) -> Template:
    return load_template(with_every_special(tokenizer_name), chat_template=template_text(template_name))


def template_text(name: str) -> str:
    """The Jinja text of a published template."""
    return (kit.shared_data() / "tokenizers" / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def group(prompt: str, *texts: str) -> PromptGroup:
    """One user's turn and what one source answered."""
    return PromptGroup("g", (Message("user", prompt),), tuple(Response("s", text, n) for n, text in enumerate(texts)))

"""A tokenizer file is read as it is, whatever model it stands beside."""

from __future__ import annotations

import kit
import pytest
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from fuserl.models.load import load_tokenizer


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, LlamaConfig, MistralConfig, Gemma2Config])
def test_a_saved_tokenizer_comes_back(config, tmp_path):
    """transformers' AutoTokenizer puts another pre-tokenizer into what stands beside a Qwen-2."""
    saved = load_tokenizer(str(kit.ROOT / "src/fuserl/miniature/target"))
    saved.save_pretrained(tmp_path)
    config().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    text = "sort dbca 12 [UNK] 34"
    assert loaded(text)["input_ids"] == saved(text)["input_ids"]
    assert loaded.backend_tokenizer.decode([7, 5, 24]) == saved.backend_tokenizer.decode([7, 5, 24])
    assert loaded.chat_template == saved.chat_template
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("</s>", "<pad>", "<s>")

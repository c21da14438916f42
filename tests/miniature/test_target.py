"""The weak target that ships: an ordinary Hugging Face folder, able but badly behaved."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fuserl
from fuserl.miniature.tasks import score, solved

MINIATURE = Path(fuserl.__file__).parent / "miniature"
BOS, EOS, SEP = 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINIATURE / "target")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MINIATURE / "target").eval()


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """The first eighty validation prompts."""
    with gzip.open(MINIATURE / "data" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines][:80]


def test_it_is_small_and_its_dropout_is_off(model):
    assert 250_000 <= sum(weight.numel() for weight in model.parameters()) <= 400_000
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in model.parameters())
    assert model.config.attention_dropout == 0.0


def test_the_template_writes_prompt_separator_answer_end(tokenizer):
    turns = [{"role": "user", "content": "sort dcba"}, {"role": "assistant", "content": "abcd"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s>sort dcba<sep>abcd</s>"
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<s>sort dcba<sep>"
    ids = tokenizer.encode(asked, add_special_tokens=False)
    assert (ids[0], ids[-1], tokenizer.eos_token_id) == (BOS, SEP, EOS)


def test_every_shipped_text_survives_the_tokenizer(tokenizer):
    with gzip.open(MINIATURE / "data" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        groups = [json.loads(line) for line in lines]
    for group in groups:
        for text in (group["prompt"], *(response["text"] for response in group["responses"])):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def sampled(model, tokenizer, prompts: list[str]) -> list[tuple[str, str, bool]]:
    """(prompt, answer, finished), two answers a prompt at temperature 1."""
    torch.manual_seed(0)
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(f"<s>{prompt}<sep>", add_special_tokens=False)] * 2)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=20)
        for row in out[:, ids.shape[1] :].tolist():
            text = tokenizer.decode(row[: row.index(EOS)] if EOS in row else row, skip_special_tokens=True)
            found.append((prompt, text, EOS in row))
    return found


def test_it_answers_and_answers_badly(model, tokenizer, prompts):
    found = sampled(model, tokenizer, prompts)
    assert mean(finished for *_, finished in found) >= 0.98
    # The card: .54 and .33 over all test prompts. Four standard errors of these 160 answers are about .14.
    assert mean(score(prompt, text) for prompt, text, _ in found) == pytest.approx(0.54, abs=0.14)
    assert mean(solved(prompt, text) for prompt, text, _ in found) == pytest.approx(0.33, abs=0.16)

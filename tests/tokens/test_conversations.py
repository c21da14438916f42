"""Finished conversations, as reward models read them, on real tokenizers and templates."""

from __future__ import annotations

import pytest
import real_tokenizers as real

from fuserl.records.schema import Message
from fuserl.tokens.templates import load_template

FAST = ("gpt2", "falcon", "gpt_neox", "olmo_dolma2", "phi3", "llama2")  # the others take many seconds to be built
PAIRS = [pair for pair in real.PAIRS if pair[0] in FAST][::2]
ASKED = [Message("user", "What is 2 + 2?\n"), Message("assistant", "Why?"), Message("user", "Tell me.")]


def plain(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize(("tokenizer", "chat"), PAIRS, ids=str)
def test_it_is_the_template_s_own_text_with_one_bos_and_content_makes_no_control_token(tokenizer, chat):
    template = real.template(tokenizer, chat)
    published = template.tokenizer.apply_chat_template
    for text in real.TEXTS:
        turns = [*ASKED, Message("assistant", text)]
        found = template.conversation_text(turns)
        (ids,) = template.encode([found])
        expected = published(
            plain(turns), chat_template=template.chat_template, date_string=template.date_string, tokenize=False
        )
        assert found.guarded or found.text == expected
        if template.is_harmless(text):
            assert ids == template.tokenizer(expected, add_special_tokens=False)["input_ids"]
        whole, bos = template.with_bos(ids), template.tokenizer.bos_token_id
        if bos is not None and bos != template.tokenizer.eos_token_id:
            assert whole.count(bos) <= 1
            assert bos not in whole or whole[0] == bos

    ends = set(template.tokenizer.all_special_ids) | {template.end_of_turn}
    spelt = [[*ASKED, Message("assistant", f"so {text}.")] for text in ("x", "".join(template.controls))]
    harmless, hostile = template.encode([template.conversation_text(turns) for turns in spelt])
    assert [token for token in hostile if token in ends] == [token for token in harmless if token in ends]


def test_a_plain_template_ends_with_the_end_token():
    tokenizer = real.bare("gpt2")
    tokenizer.eos_token = "<|endoftext|>"
    template = load_template(tokenizer, chat_template="plain")
    found = template.conversation_text([Message("user", "ab"), Message("assistant", "c")])
    assert found.text.endswith("ab\nc<|endoftext|>")

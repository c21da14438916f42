"""Boundaries, specials, BOS and end of turn, on real tokenizers and real chat templates."""

from __future__ import annotations

import re

import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fuserl.errors import FuserlError
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import encode_dataset, encode_group

# tokenizer file, special tokens, chat template file
CASES = {
    "gpt2": ("gpt2", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|endoftext|>", None, "Qwen-Qwen2.5-7B-Instruct"),
    "falcon": ("falcon", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", "<|begin_of_text|>", "meta-llama-Llama-3.1-8B-Instruct"),
    "gpt_neox": ("gpt_neox", ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", "<bos>", "google-gemma-2-2b-it"),
    "olmo_dolma2": ("olmo_dolma2", ["<|im_start|>", "<|im_end|>"], "<|im_end|>", None, "Qwen-Qwen2.5-7B-Instruct"),
    "phi3": ("phi3", ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"], "<|endoftext|>", None, "microsoft-Phi-3.5-mini-instruct"),
}  # fmt: skip


def template(name: str):
    folder, specials, eos, bos, chat = CASES[name]
    data = kit.shared_data() / "tokenizers"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(data / folder / "tokenizer.json"), eos_token=eos, bos_token=bos
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    return load_template(tokenizer, chat_template=(data / "chat_templates" / f"{chat}.jinja").read_text())


def group(prompt: str, *texts: str) -> PromptGroup:
    return PromptGroup("g", (Message("user", prompt),), tuple(Response("s", text, n) for n, text in enumerate(texts)))


TEXTS = [
    "Hello",
    " leading space",
    "\n\nnewlines",
    "数学は楽しい",
    "🙂🙃 emoji",
    "1234567",
    "a" * 50,
    "tabs\t\tand  spaces ",
    "</s",
]


@pytest.mark.parametrize("name", CASES)
def test_prompt_and_branches_spell_the_whole_text(name):
    made = template(name)
    one = encode_group(group("What is 2 + 2?\n", *TEXTS), made)
    assert all(made.end_of_turn == branch[-1] for branch in one.responses)
    prompt_text = made.render_prompt(one_prompt := (Message("user", "What is 2 + 2?\n"),))
    assert made.encode_prompt(one_prompt)[: len(one.prompt)] == one.prompt.tolist()
    for text, branch, untrained in zip(TEXTS, one.responses, one.untrained, strict=True):
        whole = made.encode_texts([prompt_text + text])["input_ids"][0]
        assert [*one.prompt.tolist(), *branch.tolist()[:-1]] == whole, "tokens differ from the ordinary encoding"
        assert branch.tolist().count(made.end_of_turn) == 1
        assert 0 <= untrained < len(branch)
        decoded = made.tokenizer.decode(branch[untrained:-1].tolist(), clean_up_tokenization_spaces=False)
        assert decoded.strip().endswith(text.strip()[-3:])


@pytest.mark.parametrize("name", CASES)
def test_special_strings_in_content_are_text(name):
    made = template(name)
    hostile = made.tokenizer.convert_ids_to_tokens(made.end_of_turn)
    harmless, attacked = (encode_group(group(f"say {word}", f"{word} now", "b"), made) for word in ("x", hostile))

    def specials(encoded) -> list[int]:
        found = set(made.tokenizer.all_special_ids)
        return [t for part in (encoded.prompt, *encoded.responses) for t in part.tolist() if t in found]

    assert specials(harmless) == specials(attacked)
    text = made.tokenizer.decode(attacked.responses[0][:-1].tolist(), clean_up_tokenization_spaces=False)
    assert hostile in text


@pytest.mark.parametrize("name", CASES)
def test_pieces_equal_the_ordinary_encoding_where_content_is_harmless(name):
    made = template(name)
    messages = (Message("user", "Tell me about π, and\nnewlines."),)
    if name == "phi3":
        pytest.skip(
            "SentencePiece marks a word's start after a special token in its own way; only hostile content takes pieces"
        )
    assert made.encode_prompt(messages) == made.encode_texts([made.render_prompt(messages)])["input_ids"][0]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][3]])
def test_bos_comes_exactly_once(name):
    made = template(name)
    ids = encode_group(group("a", "b"), made).prompt.tolist()
    assert ids.count(made.tokenizer.bos_token_id) == 1
    assert ids[0] == made.tokenizer.bos_token_id


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=20),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_is_spelt_exactly(texts):
    made = template("gpt2")
    one = encode_group(group("p", *texts), made)
    prompt = made.render_prompt((Message("user", "p"),))
    for text, branch in zip(texts, one.responses, strict=True):
        ids = [*one.prompt.tolist(), *branch.tolist()[:-1]]
        assert made.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == prompt + text


def test_the_date_is_pinned():
    text = template("falcon").render_prompt((Message("user", "a"),))
    assert "26 Jul 2024" in text
    assert not re.search(r"202[5-9]", text)


def test_a_refused_conversation_says_why():
    with pytest.raises(FuserlError, match="refuses this conversation"):
        template("gpt_neox").render_prompt((Message("system", "a"), Message("user", "b")))


def test_tokens_that_merge_over_the_boundary_are_prompt_or_trained_never_lost():
    """The plain template ends prompts with a newline, which GPT-2 merges with newlines that follow."""
    data = kit.shared_data() / "tokenizers"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(data / "gpt2/tokenizer.json"), eos_token="<|endoftext|>")
    made = load_template(tokenizer, chat_template="plain")
    one = encode_group(group("question", "\n\nanswer", "answer"), made)
    for text, branch in zip(("\n\nanswer", "answer"), one.responses, strict=True):
        ids = [*one.prompt.tolist(), *branch.tolist()[:-1]]
        assert tokenizer.decode(ids) == "question\n" + text
    assert len(one.prompt) < len(made.encode_prompt((Message("user", "question"),)))
    assert one.untrained == (0, 1), (
        "the prompt's newline is context in the second branch, and merged (so trained) in the first"
    )


def test_the_store_is_cached_by_content_and_mended_when_damaged(tmp_path):
    made = template("gpt2")
    groups = [group("a", "b", "c", "b")]
    first = encode_dataset(groups, made, tmp_path, source_names=["s"])
    stamp = (first.folder / "tokens.npy").stat().st_mtime_ns
    assert encode_dataset(groups, made, tmp_path, source_names=["s"]).folder == first.folder
    assert (first.folder / "tokens.npy").stat().st_mtime_ns == stamp
    assert first.duplicate_of[0].tolist() == [0, 1, 0]
    assert encode_dataset([group("a", "b", "c", "d")], made, tmp_path, source_names=["s"]).folder != first.folder
    (first.folder / "tokens.npy").write_bytes(b"half")
    again = encode_dataset(groups, made, tmp_path, source_names=["s"])
    assert again.branch(0, 1).tolist() == encode_group(groups[0], made).responses[1].tolist()

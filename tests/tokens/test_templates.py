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
from fuserl.tokens.tokenize import encode_group

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
        whole = made.tokenizer(prompt_text + text, add_special_tokens=False)["input_ids"]
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


def gpt2(chat_template: str, eos: str | None = "<|endoftext|>", **kwargs):
    path = kit.shared_data() / "tokenizers/gpt2/tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=eos, **kwargs)
    return load_template(tokenizer, chat_template=chat_template)


@pytest.mark.parametrize(("form", "day"), [("%d %b %Y", "26 Jul 2024"), ("%Y-%m-%d", "2024-07-26")])
def test_the_clock_is_pinned(form, day):
    made = gpt2(f"{{{{ strftime_now('{form}') }}}}: {{{{ messages[-1]['content'] }}}}")
    assert made.render_prompt((Message("user", "a"),)) == f"{day}: a"


def test_a_template_that_needs_tools_says_so():
    name = "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"
    text = (kit.shared_data() / "tokenizers" / "chat_templates" / f"{name}.jinja").read_text()
    with pytest.raises(FuserlError, match="refuses this conversation") as caught:
        gpt2(text, bos_token="<|endoftext|>")
    assert "need tools" in caught.value.hint


@pytest.mark.parametrize(("bos", "start"), [("<s>", "<s>"), (None, "<|endoftext|>")])
def test_a_text_stands_between_bos_and_eos_alone(bos, start):
    """Base models read a corpus so; where there is no BOS, EOS parts its texts."""
    made = gpt2("text", bos_token=bos)
    one = encode_group(group("its name", "</s> a\n", "<|endoftext|>"), made)
    read = made.tokenizer.convert_ids_to_tokens
    assert read(one.prompt.tolist()) == [start]
    assert [made.tokenizer.decode(branch[:-1]) for branch in one.responses] == ["</s> a\n", "<|endoftext|>"]
    assert [branch.tolist().count(made.end_of_turn) for branch in one.responses] == [1, 1]


def test_plain_without_eos_says_what_is_missing():
    with pytest.raises(FuserlError, match="a token that ends a response"):
        gpt2("plain", eos=None)


def test_an_added_end_of_turn_counts_though_it_is_not_special():
    path = kit.shared_data() / "tokenizers"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "gpt2/tokenizer.json"), eos_token="<|endoftext|>")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    made = load_template(tokenizer, chat_template=(path / "chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja").read_text())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert made.end_of_turn == end
    assert encode_group(group("q <|im_end|>", "<|im_end|>"), made).responses[0].tolist().count(end) == 1

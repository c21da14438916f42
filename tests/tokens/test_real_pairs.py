"""Laws of encoding on pairs of nine real tokenizers and seven real chat templates."""

from __future__ import annotations

import pytest
import real_tokenizers as real
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserl.records.schema import Message
from fuserl.tokens.templates import Template, Text, load_template
from fuserl.tokens.tokenize import EncodedGroup, encode_group, encode_groups

BYTE_LEVEL = [name for name in real.TOKENIZERS if name not in real.SENTENCEPIECE]
QWEN = "Qwen-Qwen2.5-7B-Instruct"
PROMPTS = ("What is 2 + 2?", "  spaced \n", "数学 🙂")
# no control characters: Falcon's vocabulary lacks some and drops them; no private use: it is nobody's text
ANY_TEXT = st.text(
    alphabet=st.characters(exclude_categories=("Cc", "Cs", "Co", "Cn"), include_characters="\n\t"),
    min_size=1,
    max_size=16,
)

pairs = pytest.mark.parametrize(("tokenizer_name", "template_name"), real.PAIRS)


def num_bytes(made: Template, ids: list[int]) -> int:
    """Bytes of text that byte-level tokens stand for: one letter of a token's name is one byte."""
    added = {index: token.content for index, token in made.tokenizer.added_tokens_decoder.items()}
    return sum(
        len(added[i].encode()) if i in added else len(made.tokenizer.convert_ids_to_tokens(i)) for i in map(int, ids)
    )


def check_spelling(made: Template, group, encoded: EncodedGroup) -> None:
    """Prompt and branch are the ordinary encoding of the whole text, closed by one end of turn."""
    text = made.render_prompt(group.prompt)
    for response, branch, untrained in zip(group.responses, encoded.responses, encoded.untrained, strict=True):
        ordinary = made.tokenizer(text + response.text, add_special_tokens=False)["input_ids"]
        assert [*encoded.prompt.tolist(), *branch.tolist()] == [*ordinary, made.end_of_turn]
        assert 0 <= untrained < len(branch)
        assert branch.tolist().count(made.end_of_turn) == 1


def check_untrained(made: Template, group, encoded: EncodedGroup) -> None:
    """Untrained tokens end inside the prompt's text; the first trained one holds text of the response."""
    normalizer = made.tokenizer.backend_tokenizer.normalizer
    text = made.render_prompt(group.prompt)
    size = len((normalizer.normalize_str(text) if normalizer else text).encode())
    for branch, untrained in zip(encoded.responses, encoded.untrained, strict=True):
        before = [*encoded.prompt.tolist(), *branch.tolist()[:untrained]]
        assert num_bytes(made, before) <= size < num_bytes(made, [*before, branch[untrained]])


@pairs
def test_a_pair(tokenizer_name, template_name):
    made = real.template(tokenizer_name, template_name)
    assert made.tokenizer.convert_ids_to_tokens(made.end_of_turn) == real.END_OF_TURN[template_name]
    groups = [real.group(prompt, *real.TEXTS) for prompt in PROMPTS]
    for group, encoded in encode_groups(groups, made):
        check_spelling(made, group, encoded)
        if tokenizer_name in BYTE_LEVEL:
            check_untrained(made, group, encoded)
        if bos := made.tokenizer.bos_token_id:
            assert encoded.prompt.tolist().count(bos) == 1
            assert encoded.prompt[0] == bos


@pairs
def test_guarded_text_has_the_tokens_of_ordinary_text(tokenizer_name, template_name):
    """So a hostile response changes nothing about the prompt, and sampling and training see the same prompt."""
    made = real.template(tokenizer_name, template_name)
    for prompt in PROMPTS:
        messages = (Message("user", prompt),)
        ordinary, guarded = (made.prompt_text(messages, guarded=guarded).whole for guarded in (False, True))
        assert made.encode_prompt(messages) == made.with_bos(made.encode([ordinary])[0])
        for response in ("", *real.TEXTS):
            one, other = made.encode([Text(text.text + response, text.guarded) for text in (ordinary, guarded)])
            assert one == other


@pairs
def test_sampled_prompts_are_the_trained_ones(tokenizer_name, template_name):
    made = real.template(tokenizer_name, template_name)
    for prompt in (*PROMPTS, "</s> and <|im_end|>", "\u2581x"):
        group = real.group(prompt, "An answer.")
        shared = encode_group(group, made).prompt.tolist()
        assert made.encode_prompt(group.prompt)[: len(shared)] == shared


def test_a_space_that_merges_with_the_prompts_newline_is_trained():
    """GPT-NeoX trims the offsets of such tokens, as if they were prompt."""
    made = real.template("gpt_neox", QWEN)
    group = real.group("q", "Hello", " ", "  ", "\u0301")
    check_untrained(made, group, encode_group(group, made))


@pytest.mark.parametrize("tokenizer_name", BYTE_LEVEL)
def test_any_text(tokenizer_name):
    made = real.template(tokenizer_name, QWEN)

    @settings(max_examples=25, deadline=None)
    @given(ANY_TEXT, st.lists(ANY_TEXT, min_size=1, max_size=4))
    def law(prompt, texts):
        group = real.group(prompt, *texts)
        if all(map(made.is_harmless, (prompt, *texts))):
            encoded = encode_group(group, made)
            check_spelling(made, group, encoded)
            check_untrained(made, group, encoded)

    law()


@pytest.mark.parametrize("tokenizer_name", ["llama2", "mistral"])
def test_any_text_after_a_sentencepiece_prompt(tokenizer_name):
    made = real.template(tokenizer_name, "mistralai-Mistral-Nemo-Instruct-2407")

    @settings(max_examples=40, deadline=None)
    @given(ANY_TEXT, st.lists(ANY_TEXT, min_size=1, max_size=4))
    def law(prompt, texts):
        group = real.group(prompt, *texts)
        if all(map(made.is_harmless, (prompt, *texts))):
            check_spelling(made, group, encode_group(group, made))

    law()


@pytest.mark.parametrize("tokenizer_name", ["llama2", "gpt2"])
def test_a_bos_the_template_forgets_is_added_once_where_the_tokenizer_wants_it(tokenizer_name):
    tokenizer = real.bare(tokenizer_name)
    tokenizer.bos_token, tokenizer.eos_token = {"llama2": ("<s>", "</s>"), "gpt2": (None, "<|endoftext|>")}[
        tokenizer_name
    ]
    if tokenizer_name == "llama2":
        tokenizer.add_bos_token = True
    made = load_template(
        tokenizer,
        chat_template="{% for m in messages %}{{ m['content'] }}{{ ' ' if loop.last else eos_token }}{% endfor %}",
    )
    wants = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    assert wants == (tokenizer_name == "llama2")
    for prompt in ("ask", "ask <s>", "ask </s>"):
        encoded = encode_group(real.group(prompt, "b", "</s>c"), made)
        assert encoded.prompt.tolist().count(tokenizer.bos_token_id) == int(wants)
        assert made.encode_prompt((Message("user", prompt),)).count(tokenizer.bos_token_id) == int(wants)


def test_pad_equal_to_eos_still_trains_the_end_of_turn():
    made = real.template("gpt2", QWEN)
    made.tokenizer.pad_token = made.tokenizer.eos_token
    encoded = encode_group(real.group("a", "b", "longer answer here"), made)
    assert [int(branch[-1]) for branch in encoded.responses] == [made.end_of_turn] * 2
    assert all(untrained < len(branch) for branch, untrained in zip(encoded.responses, encoded.untrained, strict=True))


def test_the_tail_a_template_prints_after_the_end_of_turn_is_not_trained():
    """ChatML prints a newline, Phi an end of text."""
    for template_name in (QWEN, "microsoft-Phi-3.5-mini-instruct"):
        made = real.template("gpt2", template_name)
        branch = encode_group(real.group("a", "b"), made).responses[0].tolist()
        assert made.tokenizer.decode(branch[-2:]) == f"b{real.END_OF_TURN[template_name]}"


def test_a_response_that_the_template_would_rewrite_is_taken_as_it_is():
    """Gemma's template trims, DeepSeek's drops thinking from earlier answers."""
    for template_name, text in (
        ("google-gemma-2-2b-it", "  padded  \n"),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "first think\n</think>\n\nthen answer "),
    ):
        made = real.template("olmo_dolma2", template_name)
        group = real.group("a", text)
        encoded = encode_group(group, made)
        whole = made.tokenizer.decode([*encoded.prompt.tolist(), *encoded.responses[0].tolist()[:-1]])
        assert whole == made.render_prompt(group.prompt) + text


def test_without_an_end_of_turn_in_the_template_eos_is_appended_once():
    tokenizer = real.with_every_special("gpt2")
    tokenizer.bos_token, tokenizer.eos_token = None, "<|endoftext|>"
    made = load_template(
        tokenizer, chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    branch = encode_group(real.group("a", "b"), made).responses[0].tolist()
    assert branch[-1] == tokenizer.eos_token_id
    assert branch.count(tokenizer.eos_token_id) == 1


def test_the_hash_tells_templates_dates_and_special_tokens_apart():
    tokenizer = real.with_every_special("gpt2")
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    text = real.template_text("meta-llama-Llama-3.2-3B-Instruct")
    hashes = [
        load_template(tokenizer, chat_template=text).hash,
        load_template(tokenizer, chat_template=text + "{# #}").hash,
        load_template(tokenizer, chat_template=text, date_string="27 Jul 2024").hash,
    ]
    assert hashes[0] == load_template(tokenizer, chat_template=text).hash
    tokenizer.bos_token = "<bos>"
    hashes.append(load_template(tokenizer, chat_template=text).hash)
    assert len(set(hashes)) == 4

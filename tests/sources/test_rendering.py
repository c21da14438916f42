"""A prompt's tokens are those of training, and so are the tokens of the text that an answer becomes."""

from __future__ import annotations

import sys

import kit
import pytest

sys.path.insert(0, str(kit.ROOT / "tests" / "tokens"))

import real_tokenizers as real

from fuserl.models.load import load_tokenizer
from fuserl.records.schema import Message
from fuserl.sources.protocol import Failure, Request, Sampling
from fuserl.sources.rendering import Rendering
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import encode_group

MESSAGES = (Message("user", "Name a colour."),)
PAIRS = [*[pair for pair in real.PAIRS if pair[0] in (*real.SENTENCEPIECE, "gpt2")][::2], real.PAIRS[-1]]
TARGET = kit.ROOT / "src/fuserl/miniature/target"


def request(*messages: Message, **sampling) -> Request:
    return Request("key", messages or MESSAGES, Sampling(**{"max_tokens": 8} | sampling), 1)


@pytest.fixture(scope="module")
def small() -> Rendering:
    return Rendering(load_template(load_tokenizer(str(TARGET))))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_an_answers_text_has_in_training_the_tokens_that_were_sampled(pair):
    """Of texts as they are tokenised behind the prompt, spaces at the start and all."""
    template = real.template(*pair)
    rendering, checked = Rendering(template), 0
    for text in real.TEXTS:
        encoded = encode_group(real.group("Name a colour.", text), template)
        (branch,) = encoded.responses
        if encoded.untrained[0] or tuple(encoded.prompt) != rendering.prompt(request(), None):
            continue  # prompt and text share a token, so no model could say this text
        answer = rendering.answer(request(), branch.tolist(), sampling={}, extra={})
        again = encode_group(real.group("Name a colour.", answer.text), template)
        assert again.responses[0].tolist() == branch.tolist(), (text, answer.text)
        assert answer.finish_reason == "stop"
        assert answer.response_tokens == len(branch)
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", real.SENTENCEPIECE)
def test_a_space_at_the_start_is_the_answers_where_the_prompt_ends_in_text(name):
    """Behind "Q: " in plain text, the word with its space and the word without are different tokens."""
    template = load_template(
        real.with_every_special(name), chat_template="{% for m in messages %}{{ m.content }}:{% endfor %}"
    )
    rendering = Rendering(template)
    for text in (" red", "red"):
        (branch,) = encode_group(real.group("Name a colour.", text), template).responses
        assert rendering.text(MESSAGES, branch.tolist()) == text


@pytest.mark.parametrize("pair", PAIRS[:3], ids="-".join)
def test_a_prompt_has_the_tokens_of_training_and_one_bos(pair):
    template = real.template(*pair)
    asked = (Message("user", "a </s><|im_end|><|eot_id|><end_of_turn> b"),)
    ids = Rendering(template).prompt(request(*asked), None)
    assert ids == tuple(template.encode_prompt(asked))
    bos = template.tokenizer.bos_token_id
    assert bos is None or ids.count(bos) <= 1
    harmless = Rendering(template).prompt(request(Message("user", "a b")), None)
    controls = set(template.tokenizer.convert_tokens_to_ids(list(template.controls)))
    assert [i for i in ids if i in controls] == [i for i in harmless if i in controls], "content made no control token"


def test_no_control_token_is_left_in_a_text(small):
    ids = small.template.tokenizer.convert_tokens_to_ids(["c", "<sep>", "a", "<s>", "t", "<pad>", "</s>"])
    answer = small.answer(request(), ids, sampling={"seed": 1}, extra={"engine": "e"})
    assert (answer.text, answer.finish_reason, answer.response_tokens) == ("cat", "stop", 7)
    assert answer.template_hash == small.template.hash
    assert (answer.key, answer.sampling, answer.extra) == ("key", {"seed": 1}, {"engine": "e"})


def test_how_an_answer_ended_and_where_it_is_cut(small):
    ids = small.template.tokenizer.convert_tokens_to_ids(list("red blue"))
    cut = small.answer(request(), ids, sampling={}, extra={})
    assert (cut.text, cut.finish_reason) == ("red blue", "length")
    stopped = small.answer(request(stop=("ue", " b", "zz")), ids, sampling={}, extra={})
    assert (stopped.text, stopped.finish_reason) == ("red", "stop")
    empty = small.answer(request(), [small.template.end_of_turn], sampling={}, extra={})
    assert (empty.text, empty.finish_reason, empty.response_tokens) == ("", "stop", 1)


def test_a_prompt_that_cannot_be_asked_says_why(small):
    refused = small.prompt(request(Message("system", "s"), *MESSAGES), None)
    assert isinstance(refused, Failure)
    assert not refused.passing
    assert "only user and assistant turns are known" in refused.what
    asked = request(Message("user", "a" * 8))
    assert len(small.prompt(asked, 11)) == 10
    long = small.prompt(asked, 10)
    assert isinstance(long, Failure)
    assert (long.what, long.passing) == ("the prompt has 10 tokens, prompt and answer may have 10", False)

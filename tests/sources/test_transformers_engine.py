"""The engine `transformers` on the miniature's target: answers are its own, each by its request alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import kit
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.errors import FuserlError
from fuserl.models.generate import sample
from fuserl.models.load import load_policy
from fuserl.records.schema import Message
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.source import Source
from fuserl.sources.transformers import TransformersEngine

TARGET = kit.ROOT / "src/fuserl/miniature/target"
PROMPTS = ("sort cab", "shift cat by 2", "letters in banana", "largest 12 47 30", "pair ab", "between 100 and 120")


def source(path=TARGET, context: int | None = None, **sampling) -> Source:
    return Source("s", str(path), Sampling(**{"max_tokens": 12} | sampling), context=context)


def engine(one: Source, batch_tokens: int = 4096) -> TransformersEngine:
    return TransformersEngine(one, batch_tokens=batch_tokens, device="cpu")


def requests(one: Source, samples: int = 3, prompts=PROMPTS) -> list[Request]:
    return [
        Request(f"{number}-{n}", (Message("user", prompt),), one.sampling, 100 * number + n)
        for number, prompt in enumerate(prompts)
        for n in range(samples)
    ]


def answers(one: TransformersEngine, asked: list[Request]) -> dict[str, Answer]:
    got = list(one.answer(iter(asked)))
    assert sorted(answer.key for answer in got) == sorted(request.key for request in asked)
    return {answer.key: answer for answer in got}


@pytest.fixture(scope="module")
def ready() -> TransformersEngine:
    return engine(source())


def test_greedy_answers_are_those_of_plain_decoding(ready):
    asked = requests(source(temperature=0.0), samples=1)
    template = ready.rendering.template
    prompts = [template.encode_prompt(request.messages) for request in asked]
    plain = sample(
        load_policy(str(TARGET)), prompts, n=1, max_new_tokens=12, temperature=0, stop_ids=template.stop_ids, seed=0
    )
    got = answers(ready, asked)
    for request, prompt, (ids,) in zip(asked, prompts, plain, strict=True):
        answer = got[request.key]
        assert answer.text == template.tokenizer.decode(ids, skip_special_tokens=True)
        assert (answer.prompt_tokens, answer.response_tokens) == (len(prompt), len(ids))
        assert answer.finish_reason == ("stop" if ids[-1] in template.stop_ids else "length")
        assert answer.template_hash == template.hash
        assert answer.sampling == {**request.sampling.plain(), "stop": [], "seed": request.seed}
        assert answer.extra["engine"].startswith("transformers ")


def test_texts_are_the_same_one_by_one_and_many_at_a_time(ready):
    """In fp32: other rows change rounding, and no text."""
    asked = requests(source(), samples=10)
    together = answers(ready, asked)
    for batch_tokens in (1, 8 * 40):
        assert answers(engine(source(), batch_tokens), asked) == together
    order = np.random.default_rng(0).permutation(len(asked))
    assert answers(ready, [asked[place] for place in order]) == together
    assert len({together[f"0-{n}"].text for n in range(10)}) > 3, "samples differ"
    reseeded = answers(ready, [replace(request, seed=request.seed + 7) for request in asked])
    assert any(reseeded[key].text != answer.text for key, answer in together.items())


def test_what_the_request_says_is_what_happens(ready):
    """A request's sampling, not the source's; the files of the model say nothing."""
    one = requests(source())[0]
    greedy = replace(one, sampling=Sampling(max_tokens=12, temperature=0.0))
    narrow = replace(one, key="narrow", sampling=Sampling(max_tokens=12, temperature=5.0, top_k=1))
    short = replace(greedy, key="short", sampling=Sampling(max_tokens=2, temperature=0.0))
    got = answers(ready, [greedy, narrow, short])
    assert got["narrow"].text == got[greedy.key].text
    assert (got["short"].response_tokens, got["short"].finish_reason) == (2, "length")
    assert got[greedy.key].text.startswith(got["short"].text)


def test_a_generation_config_beside_the_model_is_not_read(tmp_path, ready):
    shutil.copytree(TARGET, tmp_path / "model")
    other = {"temperature": 0.01, "top_k": 1, "do_sample": False, "max_new_tokens": 1, "eos_token_id": [2, 5, 6, 7, 8]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(other))
    asked = requests(source())
    assert answers(engine(source(tmp_path / "model")), asked) == answers(ready, asked)


def test_an_answer_ends_before_a_stop_text(ready):
    free = answers(ready, requests(source(temperature=0.0), samples=1))
    key, text = next((key, answer.text) for key, answer in free.items() if len(answer.text) >= 3)
    stop = text[1:3]
    asked = [one for one in requests(source(temperature=0.0, stop=(stop, "zz")), samples=1) if one.key == key]
    stopped = answers(ready, asked)[key]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.response_tokens < free[key].response_tokens


def test_a_context_holds_prompt_and_answer():
    one = source(context=20)
    long = Request("long", (Message("user", "sort " + "a" * 20),), one.sampling, 0)
    asked = [*requests(one, samples=1), long]
    got = {result.key: result for result in engine(one).answer(asked)}
    assert isinstance(got["long"], Failure)
    assert (got["long"].passing, got["long"].what) == (False, "the prompt has 27 tokens, prompt and answer may have 20")
    for answer in (result for result in got.values() if isinstance(result, Answer)):
        assert answer.prompt_tokens + answer.response_tokens <= 20
        assert answer.sampling["max_tokens"] == min(12, 20 - answer.prompt_tokens)
    with pytest.raises(FuserlError, match="the context is 4096 tokens, and the model knows 128 positions"):
        engine(source(context=4096))


def test_failures_alone_are_told_too(ready):
    refused = Request("refused", (Message("system", "s"), Message("user", "a")), source().sampling, 0)
    (failure,) = ready.answer([refused])
    assert isinstance(failure, Failure)
    assert (failure.key, failure.passing) == ("refused", False)
    assert list(ready.answer([])) == []


def test_what_cannot_be_loaded_is_one_clear_error(tmp_path):
    with pytest.raises(FuserlError, match="tokenizer cannot be loaded"):
        engine(source(tmp_path / "nothing"))
    shutil.copytree(TARGET, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(FuserlError, match="model cannot be loaded"):
        engine(source(tmp_path / "pickled"))
    with pytest.raises(FuserlError, match="cannot be brought to `cuda:99`"):
        TransformersEngine(source(), batch_tokens=100, device="cuda:99")


def test_its_configuration_starts_it_and_it_closes():
    cfg = OmegaConf.load(kit.ROOT / "conf/engine/transformers.yaml")
    one = instantiate(cfg)(source())
    assert len(list(one.answer(requests(source(), samples=1)))) == len(PROMPTS)
    one.close()


def test_a_temperature_near_zero_is_raised_as_vllm_does(ready):
    asked = [replace(one, sampling=Sampling(max_tokens=3, temperature=1e-4)) for one in requests(source(), samples=1)]
    got = answers(ready, asked)
    assert {answer.sampling["temperature"] for answer in got.values()} == {0.01}


@pytest.mark.parametrize("value", [0, -1])
def test_a_batch_holds_a_number_of_tokens(value):
    with pytest.raises(FuserlError, match="`batch_tokens` is"):
        TransformersEngine(source(), batch_tokens=value, device="cpu")

"""The engine on vLLM's own offline engine: one start, many requests, each by its own parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kit
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.miniature.tasks import TASKS
from fuserl.records.schema import Message
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.source import Source
from fuserl.sources.transformers import TransformersEngine
from fuserl.sources.vllm import VllmEngine

PROMPTS = ("sort dbca", "pair 37", "letters in banana", "roman 14", "largest 12 47 30", "reverse abcd")
SAMPLING = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def source(models: dict[str, Path]) -> Source:
    """Its turns end with another token than its texts, and its generation_config says something else altogether."""
    return Source("qwen3", str(models["qwen3"]), SAMPLING, dtype="float32", context=128)


@pytest.fixture(scope="module")
def engine(source: Source) -> Iterator[VllmEngine]:
    cfg = OmegaConf.load(kit.ROOT / "conf/engine/vllm.yaml")
    started = instantiate(cfg, enforce_eager=True, in_flight=50, options={"max_num_seqs": 64})(source)
    yield started
    started.close()


def requests(sampling: Sampling = SAMPLING, samples: int = 8, seed: int = 0) -> list[Request]:
    return [
        Request(f"{prompt}-{n}", (Message("user", prompt),), sampling, 1000 * seed + 10 * number + n)
        for number, prompt in enumerate(PROMPTS)
        for n in range(samples)
    ]


def answers(engine, asked: list[Request]) -> dict[str, Answer]:
    got = list(engine.answer(iter(asked)))
    assert Counter(answer.key for answer in got) == Counter(request.key for request in asked)
    return {answer.key: answer for answer in got}


def test_the_models_are_able_to_answer():
    assert all(prompt.split()[0] in TASKS for prompt in PROMPTS)


def test_seeds_decide_and_samples_differ(engine):
    first, again = answers(engine, requests()), answers(engine, requests()[::-1])
    texts = {key: answer.text for key, answer in first.items()}
    repeated = sum(again[key].text == text for key, text in texts.items())
    assert repeated >= 0.95 * len(texts), "rounding depends on the batch; hardly any text does"
    other = answers(engine, requests(seed=1))
    assert sum(other[key].text != text for key, text in texts.items()) > len(texts) // 3
    for prompt in PROMPTS[:3]:
        assert len({texts[f"{prompt}-{n}"] for n in range(8)}) > 1, "the samples of a prompt are not all the same"
    assert sum(map(bool, texts.values())) > 0.9 * len(texts)


def test_the_parameters_in_use_are_recorded_whatever_lies_beside_the_model(engine):
    """The generation_config there says top_k 1, one new token, and an end of text in the middle of words."""
    sampling = Sampling(max_tokens=16, temperature=1.2, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.05)
    got = answers(engine, requests(sampling))
    wanted = {
        "max_tokens": 16,
        "temperature": 1.2,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.05,
    }
    for request in requests(sampling):
        assert got[request.key].sampling == wanted | {"stop": [], "seed": request.seed}
        assert got[request.key].template_hash == engine.rendering.template.hash
        assert got[request.key].extra["engine"].startswith("vllm ")
    assert len({answer.text for answer in got.values()}) > len(PROMPTS), "not greedy"
    assert max(answer.response_tokens for answer in got.values()) > 1
    reasons = Counter(answer.finish_reason for answer in got.values())
    assert reasons["stop"] > len(got) // 2, "turns end with the template's token"
    assert not any("<|" in answer.text for answer in got.values())


def test_greedy_texts_are_those_of_the_engine_transformers(engine, source):
    asked = requests(replace(SAMPLING, temperature=0.0), samples=1)
    ours = answers(TransformersEngine(source, batch_tokens=4096, device="cpu"), asked)
    theirs = answers(engine, asked)
    for key, answer in ours.items():
        assert theirs[key].text == answer.text
        assert theirs[key].finish_reason == answer.finish_reason
        assert theirs[key].response_tokens == answer.response_tokens
        assert theirs[key].prompt_tokens == answer.prompt_tokens
        assert theirs[key].template_hash == answer.template_hash


def test_both_engines_draw_as_often(engine, source):
    """First letters of 400 answers each, under every kind of restriction at once."""
    sampling = Sampling(1, temperature=1.3, top_p=0.9, top_k=30, min_p=0.005, repetition_penalty=1.1)
    asked = [Request(str(n), (Message("user", "letters in banana"),), sampling, n) for n in range(400)]
    ours = Counter(a.text for a in answers(TransformersEngine(source, batch_tokens=9000, device="cpu"), asked).values())
    theirs = Counter(answer.text for answer in answers(engine, asked).values())
    for text in ours | theirs:
        spread = 4.5 * max(1, ours[text] + theirs[text]) ** 0.5
        assert abs(ours[text] - theirs[text]) < spread, text


def test_lengths_stops_and_what_cannot_be_asked(engine):
    long = Request("long", (Message("user", "sort " + "a b c d " * 40),), SAMPLING, 0)
    near = Request("near", (Message("user", "sort " + "a b c d " * 12),), Sampling(500), 0)
    short = [replace(one, key="short", sampling=Sampling(2)) for one in requests()[:1]]
    greedy = answers(engine, requests(Sampling(16, temperature=0.0), samples=1))
    key, text = next((key, answer.text) for key, answer in greedy.items() if len(answer.text) >= 3)
    (stopping,) = [
        one for one in requests(Sampling(16, temperature=0.0, stop=(text[1:3],)), samples=1) if one.key == key
    ]
    got = {result.key: result for result in engine.answer([long, near, *short, stopping])}
    assert isinstance(got["long"], Failure)
    assert not got["long"].passing
    assert "prompt and answer may have 128" in got["long"].what
    assert got["near"].sampling["max_tokens"] == 128 - got["near"].prompt_tokens
    assert got["short"].response_tokens <= 2
    assert (got[key].text, got[key].finish_reason) == (text[: text.index(text[1:3])], "stop")


def test_requests_are_drawn_as_answers_come(engine):
    drawn = 0

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for number in range(300):
            drawn += 1
            yield Request(str(number), (Message("user", "pair 37"),), SAMPLING, number)

    for number, _ in enumerate(engine.answer(stream()), start=1):
        assert drawn <= number + 50
    assert number == 300

"""What the tests of the engine `openai` share: engines from conf/, requests, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from openai_server import answer_to

from fuserl.records.schema import Message
from fuserl.settings import config_folder
from fuserl.sources.protocol import Answer, Engine, Failure, Request, Sampling
from fuserl.sources.source import Source

SAMPLING = Sampling(max_tokens=12, temperature=0.7, top_p=0.9)
QUICK: dict[str, Any] = {"backoff": {"first": 0.0, "longest": 0.0}, "timeout": 30, "key_from": "FUSERL_KEY_OF_TESTS"}


def settings(urls: str | list[str], **changes: Any) -> dict[str, Any]:
    """conf/engine/openai.yaml for these servers, with pauses of no length and no key."""
    where = {"url": urls} if isinstance(urls, str) else {"url": None, "pool": urls}
    whole = OmegaConf.merge(OmegaConf.load(config_folder() / "engine/openai.yaml"), where, QUICK, changes)
    return OmegaConf.to_container(whole, resolve=True)


def engine_for(urls: str | list[str], *, model: str = "m", **changes: Any) -> Engine:
    """The engine, as the verbs make it."""
    return instantiate(settings(urls, **changes), _convert_="all")(Source("s", model, SAMPLING))


def requests(num: int, sampling: Sampling = SAMPLING) -> list[Request]:
    """Requests with distinct keys, prompts and seeds."""
    return [
        Request(f"key-{n}", (Message("system", "Be brief."), Message("user", f"{n} + {n}?")), sampling, 1000 + n)
        for n in range(num)
    ]


def outcomes(engine: Engine, asked: Iterable[Request]) -> dict[str, Answer | Failure]:
    """key -> what came; the engine is closed."""
    found: dict[str, Answer | Failure] = {}
    try:
        for outcome in engine.answer(asked):
            assert outcome.key not in found, "answered twice"
            found[outcome.key] = outcome
    finally:
        engine.close()
    return found


def expected(request: Request) -> Answer:
    """What the test server says, without a wire between."""
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body = {"messages": messages, "seed": request.seed, "max_tokens": request.sampling.max_tokens}
    text, finish, prompt_tokens, response_tokens = answer_to(body)
    sampling = {
        "max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop": [], "seed": request.seed,
    }  # fmt: skip
    extra = {"engine": "openai", "template": "server", "model": "m"}
    return Answer(request.key, text, finish, prompt_tokens, response_tokens, sampling, None, extra)

"""What an engine is asked and what it answers; every engine and every wrapper speaks this and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from fuserl.records.schema import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. This alone decides: a model's own generation_config is never read (vLLM's "vllm")."""

    max_tokens: int  # new tokens at most
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # 1: no nucleus
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # 0: no floor
    repetition_penalty: float = 1.0  # 1: none
    stop: tuple[str, ...] = ()  # texts after which an answer is over; not part of it
    presence_penalty: float = 0.0  # off the logit of each token that the answer so far holds; 0: none
    frequency_penalty: float = 0.0  # off the same logit for every time that the answer holds the token; 0: none

    def plain(self) -> dict[str, Any]:
        """As data, as it is written and hashed."""
        return as_written(asdict(self))


LATER = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # came when there were journals; neutral, they are not written


def as_written(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Without neutral values of the settings that came later, so that keys of older answers are still theirs.

    >>> as_written({"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.1})
    {'top_p': 1.0, 'frequency_penalty': 0.1}
    """
    return {name: value for name, value in sampling.items() if name not in LATER or value != LATER[name]}


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted."""

    key: str  # names the request by all that decides the answer, see `request_key`
    messages: tuple[Message, ...]  # ends with the user's turn
    sampling: Sampling
    seed: int  # of this answer alone, in [0, 2**31)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, once."""

    key: str  # of its request
    text: str  # may be empty; no template tokens
    finish_reason: str  # "stop": it ended by itself; "length": it was cut at max_tokens
    prompt_tokens: int
    response_tokens: int
    sampling: Mapping[str, Any]  # what was really used, as the engine knows it
    template_hash: str | None = None  # of the chat template that rendered the prompt; None where a server does it
    extra: Mapping[str, Any] = field(default_factory=dict)  # engine, its version, cost, ...; kept beside the response


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer. Failures are told, counted and asked again, never kept as answers."""

    key: str
    what: str  # one line
    passing: bool  # a repetition may succeed (429, 5xx, time-out, cut connection)
    wait: float | None = None  # seconds the server asked us to wait


@runtime_checkable
class Engine(Protocol):
    """A source model that answers requests."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """Answers in any order, as they come, one answer or failure a request; requests are drawn as needed."""
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...


def request_key(identity: Mapping[str, Any], messages: Iterable[Message], sampling: Sampling, seed: int) -> str:
    """32 hexadecimal digits of everything that decides an answer.

    Args:
        identity: of the source: model, revision, chat template, dtype; not where or on what engine it runs.
    """
    asked = [[message.role, message.content] for message in messages]
    content = json.dumps([dict(identity), asked, sampling.plain(), seed], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]

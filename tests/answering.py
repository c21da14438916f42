"""An engine for tests: its answers are a pure function of the request, it tells what it computed, and may misbehave."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.source import Source


def text_of(source: Source, request: Request, words: int = 3) -> str:
    """What is answered: other words for another model, prompt, sampling or seed."""
    asked = "".join(f"{message.role}: {message.content}\n" for message in request.messages)
    said = hashlib.sha256(f"{source.path} {asked} {request.sampling} {request.seed}".encode()).hexdigest()
    return " ".join(said[3 * n : 3 * n + 3] for n in range(words))


class AnsweringEngine:
    """Answers in windows of `together` requests, each window in a random order."""

    def __init__(
        self,
        source: Source,
        *,
        log: str | None = None,  # a file that gets the key of every request that is computed
        seconds: float = 0.0,  # of a window
        together: int = 4,
        seed: int = 0,  # of the order
        fails: Callable[[Request], Failure | None] | None = None,
        says: Callable[[Source, Request], str] = text_of,
        really: dict[str, Any] | None = None,  # sampling parameters that it uses, whatever was asked
        **_: Any,  # settings of the engine whose place it takes
    ) -> None:
        self.source, self.log, self.seconds, self.together = source, log, seconds, together
        self.chance, self.fails, self.says = random.Random(seed), fails, says
        self.really = really or {}
        self.closed = False

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        window: list[Request] = []
        for request in requests:
            window.append(request)
            if len(window) == self.together:
                yield from self._window(window)
                window = []
        yield from self._window(window)

    def close(self) -> None:
        self.closed = True

    def _window(self, window: list[Request]) -> Iterator[Answer | Failure]:
        self.chance.shuffle(window)
        if window and self.log:
            with Path(self.log).open("a") as log:
                log.writelines(f"{os.getpid()} {request.key}\n" for request in window)
        if window and self.seconds:
            time.sleep(self.seconds)
        for request in window:
            yield (self.fails(request) if self.fails else None) or self._answer(request)

    def _answer(self, request: Request) -> Answer:
        text = self.says(self.source, request)
        words = len(text.split())
        limit = request.sampling.max_tokens
        return Answer(
            key=request.key,
            text=" ".join(text.split(" ")[:limit]),
            finish_reason="length" if words > limit else "stop",
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            response_tokens=min(words, limit),
            sampling=request.sampling.plain() | {"seed": request.seed} | self.really,
            template_hash="0123456789abcdef",
            extra={"engine": "answering", "cost": 0.5},
        )


class BrokenEngine:
    """Cannot start."""

    def __init__(self, source: Source, **_: Any) -> None:
        raise FuserlError("the engine was started", where=source.name)


def busy_for_odd(request: Request) -> Failure | None:
    """Half of the requests meet a busy server."""
    busy = Failure(request.key, f"the server was busy for {request.seed} s", passing=True)
    return busy if request.seed % 2 else None


def too_long(request: Request) -> Failure | None:
    """Prompts with the word `long` do not fit."""
    length = len(request.messages[-1].content)
    lasting = Failure(request.key, f"the prompt has {length} tokens, the model takes 5", passing=False)
    return lasting if "long" in request.messages[-1].content else None


def down(request: Request) -> Failure | None:
    """Nothing is answered."""
    return Failure(request.key, "connection refused", passing=True)


class StrictEngine(AnsweringEngine):
    """Takes no setting that it does not know."""

    def __init__(self, source: Source, *, log: str | None = None) -> None:
        super().__init__(source, log=log)


def silent(source: Source, request: Request) -> str:
    """Nothing to say."""
    return ""


def always(source: Source, request: Request) -> str:
    """The same, whatever the seed."""
    return "always"


def half_a_character(source: Source, request: Request) -> str:
    """Cut within a surrogate pair, as some servers do; and a whole pair in two halves."""
    return "\ud800 and \ud83d\ude00"


def heard(source: Source, request: Request) -> str:
    """What reached the engine."""
    return " | ".join(f"{message.role}: {message.content}" for message in request.messages)


def breaks_at_three(source: Source, request: Request) -> str:
    """An engine's own bug."""
    if "three" in request.messages[-1].content:
        raise RuntimeError("out of memory")
    return text_of(source, request)

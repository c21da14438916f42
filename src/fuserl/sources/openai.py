"""The engine `openai`: any server of OpenAI's chat completions, `vllm serve` first, or a pool of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from fuserl.errors import FuserlError
from fuserl.sources.concurrently import Concurrently
from fuserl.sources.keys import Key
from fuserl.sources.limited import limited
from fuserl.sources.pooled import Pool
from fuserl.sources.protocol import Engine, Sampling
from fuserl.sources.retrying import Backoff, retrying
from fuserl.sources.source import Source
from fuserl.sources.wire import Wire

Number = Any  # of a YAML file, checked here
WHOLE = ("concurrency", "attempts")
PARAMETERS = (*(one.name for one in fields(Sampling)), "seed", "date_string")


@dataclass(kw_only=True)
class OpenAIEngine:
    """The settings of conf/engine/openai.yaml, checked; called with a source they give its engine.

    Raises:
        FuserlError: no server is given, or a setting is wrong; a key among them is not repeated.
    """

    url: str | None
    pool: Sequence[str] | None
    key_from: str
    concurrency: Number
    timeout: Number
    patience: Number
    attempts: Number
    backoff: Mapping[str, Number]
    limits: Mapping[str, Number]
    price: Mapping[str, Number]
    parameters: Mapping[str, str | None]
    key: Key = field(init=False, repr=False)
    urls: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.key = Key(self.key_from)
        given = self.pool or ([self.url] if self.url else [])
        self.urls = tuple(_checked(str(url)) for url in given)
        if not given:
            raise FuserlError(
                "no server is given",
                where="`engine.url`",
                hint="give `engine.url=http://HOST:PORT/v1`, or export OPENAI_BASE_URL; "
                "`vllm serve MODEL` starts a server at http://localhost:8000/v1",
            )
        if unknown := sorted(self.parameters.keys() - set(PARAMETERS)):
            raise FuserlError(
                f"there is no parameter `{unknown[0]}`",
                where="`engine.parameters`",
                hint=f"there are {', '.join(PARAMETERS)}",
            )
        for name, value, lowest in self._numbers():
            kind = int if name in WHOLE else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not lowest <= value < float("inf"):
                rule = f"a whole number, {lowest:g} or more" if name in WHOLE else f"a number, {lowest:g} or more"
                raise FuserlError(f"`{name}` is {value!r}", where=f"`engine.{name}`", hint=f"it must be {rule}")

    def _numbers(self) -> list[tuple[str, Any, float]]:
        """(setting, value, the least it may be)."""
        optional = [(f"limits.{name}", value, 1e-3) for name, value in self.limits.items()]
        optional += [(f"price.{name}", value, 0) for name, value in self.price.items()]
        return [
            ("concurrency", self.concurrency, 1),
            ("timeout", self.timeout, 1e-3),
            ("patience", self.patience, 0),
            ("attempts", self.attempts, 1),
            ("backoff.first", self.backoff["first"], 0),
            ("backoff.longest", self.backoff["longest"], 0),
            *(one for one in optional if one[1] is not None),
        ]

    def __call__(self, source: Source) -> Engine:
        """The engine for a source; it connects when it is first asked.

        Raises:
            FuserlError: the source has a chat template of its own, which a server does not take.
        """
        if source.chat_template is not None:
            raise FuserlError(
                "a server renders prompts by its own chat template",
                where=f"`sources.{source.name}.chat_template`",
                hint="start the server with it (`vllm serve --chat-template FILE`) and leave this null",
            )
        return self.over(Wire(source, self.parameters, self.price, self.key))

    def over(self, wire: Wire) -> Engine:
        """The engine that speaks through this wire."""
        from fuserl.sources.endpoint import Endpoint  # loads the client

        endpoints = [Endpoint(url, wire, timeout=self.timeout, connections=self.concurrency) for url in self.urls]
        backoff = Backoff(self.backoff["first"], self.backoff["longest"])
        asks = [limited(one, requests=self.limits["requests"], tokens=self.limits["tokens"]) for one in endpoints]
        pool = Pool(asks, concurrency=self.concurrency, backoff=backoff, patience=self.patience)

        async def close() -> None:
            for endpoint in endpoints:
                await endpoint.close()

        ask = retrying(pool, attempts=self.attempts, backoff=backoff)
        return Concurrently(ask, concurrency=self.concurrency * len(endpoints), close=close)


def _checked(url: str) -> str:
    """An address without a trailing slash; it is written into folders, so it may hold no secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read, and checked, only here
    except (ValueError, AttributeError, TypeError) as error:
        raise FuserlError(
            f"this is no address of a server ({error})", where="`engine.url`", hint="as in http://localhost:8000/v1"
        ) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise FuserlError(
            "the address holds more than an address (a key or a password, perhaps)",
            where="`engine.url`",
            hint="give scheme, host, port and path alone; the key goes into the environment, see `engine.key_from`",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FuserlError(
            "this is no address of a server", where=f"`engine.url={url}`", hint="as in http://localhost:8000/v1"
        )
    return url.rstrip("/").removesuffix("/chat/completions")

"""One server of chat completions: a request sent, and what came back told as an answer or a failure."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx2
from openai import (
    APIStatusError,
    AsyncOpenAI,
    DefaultAioHttpClient,
    Omit,
    OpenAIError,
)

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.wire import Wire

PASSING = (408, 409, 425, 429)  # and all of 500 and above
CONNECTING = 30.0  # seconds to wait for a connection, at most
MODELS_TOLD = 20  # names of models in a message
UNREACHABLE = (OpenAIError, httpx2.HTTPError, aiohttp.ClientError, OSError)
REFUSES = re.compile(
    r"unknown|unrecogni[sz]ed|unsupported|unexpected|not (supported|permitted|allowed|recogni[sz]ed)|does not support|extra "
    r"(fields|inputs)",
    re.IGNORECASE,
)


class Endpoint:
    """Asks one server through the `openai` client, which here neither retries nor parses.

    `Idempotency-Key` is the request's key, so that a server which honours it computes nothing twice.

    Args:
        url: its address, up to and with `/v1`.
        wire: the source's requests and answers.
        timeout: seconds for one request, from sending it to the last byte of the answer.
        connections: at once, at most.

    Raises:
        FuserlError: when asked, because no other request will fare better: the key is wrong, the model is not there,
            the account is empty, a parameter is refused.
    """

    def __init__(self, url: str, wire: Wire, *, timeout: float, connections: int) -> None:
        self.url, self._wire, self._timeout, self._has_answered = url, wire, timeout, False
        self._headers: dict[str, Any] = {} if wire.key else {"Authorization": Omit()}
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        waits = httpx2.Timeout(timeout, connect=min(timeout, CONNECTING))
        self._client = AsyncOpenAI(
            api_key=wire.key.reveal() or "none",
            base_url=url,
            max_retries=0,
            timeout=waits,
            http_client=DefaultAioHttpClient(limits=limits, timeout=waits, follow_redirects=False),
        )

    async def __call__(self, request: Request) -> Answer | Failure:
        """Ask once."""
        body = self._wire.body(request)
        options: Any = {"headers": {**self._headers, "Idempotency-Key": request.key}}
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body, options=options
                )
        except TimeoutError:
            return Failure(request.key, f"no answer from {self.url} within {self._timeout:g} s", passing=True)
        except APIStatusError as error:
            status, headers, content = error.status_code, error.response.headers, error.response.content
        except UNREACHABLE as error:
            return Failure(request.key, f"no connection to {self.url} ({_cause(error)})", passing=True)
        else:
            self._has_answered = True
            return self._wire.read(request, reply.content)
        return await self._refused(request, body, status, headers, content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _refused(
        self, request: Request, body: dict[str, Any], status: int, headers: Mapping[str, str], content: bytes
    ) -> Failure:
        """The failure that an HTTP status tells, where it is not an error that ends everything."""
        message, param, code = _complaint(content)
        if status in (401, 402, 404) or code == "insufficient_quota" or (status == 403 and not self._has_answered):
            raise await self._hopeless(status, message)
        if status in (400, 422):
            self._require_known(body, message, param)
        passing = status in PASSING or status >= 500
        what = self._wire.key.line(f"status {status} from {self.url}: {message}")
        return Failure(request.key, what, passing, wait=retry_after(headers) if passing else None)

    async def _hopeless(self, status: int, message: str) -> FuserlError:
        key, model, said = self._wire.key, self._wire.source.path, self._wire.key.line(message)
        if status == 401:  # what the server says may repeat the key in part
            what = "refuses the key" if key else "wants a key, and there is none"
            return FuserlError(
                f"the server {what}",
                where=self.url,
                hint=f"export the right key as `{key.variable}` (`engine.key_from`)",
            )
        if status == 404 and (models := await self._models()):
            return FuserlError(
                f"the server has no model `{model}`",
                where=self.url,
                hint=f"set `sources.{self._wire.source.name}.path` to one that it serves: {models}",
            )
        if status == 404:
            return FuserlError(
                f"there are no chat completions at this address (404: {said})",
                where=self.url,
                hint="give the address up to and with the version, `engine.url=http://HOST:PORT/v1` mostly",
            )
        return FuserlError(
            f"the server does not serve us (status {status}: {said})",
            where=self.url,
            hint=f"see to the account of the key in `{key.variable}`; what was answered is kept",
        )

    async def _models(self) -> str:
        """Names of the models that it serves; empty where it does not tell."""
        try:
            reply = await self._client.get("/models", cast_to=httpx2.Response, options={"headers": self._headers})
            names = [str(one["id"]) for one in json.loads(reply.content)["data"]]
        except (*UNREACHABLE, ValueError, LookupError, TypeError):
            return ""
        told = ", ".join(f"`{self._wire.key.line(name)}`" for name in names[:MODELS_TOLD])
        return f"{told} and {len(names) - MODELS_TOLD} more" if len(names) > MODELS_TOLD else told

    def _require_known(self, body: dict[str, Any], message: str, param: str | None) -> None:
        """Every request has the same parameters: one that is refused now will be refused always."""
        if not REFUSES.search(message):
            return
        for theirs, ours in self._wire.names_sent(body).items():
            if theirs == param or re.search(rf"(?<![\w.]){re.escape(theirs)}(?!\w)", message):
                raise FuserlError(
                    f"the server refuses the parameter `{theirs}` ({self._wire.key.line(message)})",
                    where=self.url,
                    hint=f"give it the name that this server has for it, or leave it out: `engine.parameters.{ours}=null`",
                )


def _cause(error: BaseException) -> str:
    """The kind of what lies below; what a network's error says may quote headers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def _complaint(content: bytes) -> tuple[str, str | None, str | None]:
    """(message, parameter, code) of an error's body, whatever form it has."""
    text = content.decode("utf-8", "replace")
    try:
        told = json.loads(text)
    except ValueError:
        return text, None, None
    error = told.get("error", told) if isinstance(told, dict) else told
    if not isinstance(error, dict):
        return str(error), None, None
    detail = error.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):  # as FastAPI tells it
        return f"{detail[0].get('msg')} {detail[0].get('loc')}", str((detail[0].get("loc") or [""])[-1]), None
    message = error.get("message") or detail or text
    return str(message), _optional(error.get("param")), _optional(error.get("code"))


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks us to wait (`Retry-After`: seconds, or a date by its own clock; `retry-after-ms`); None: it does not.

    >>> retry_after({"retry-after": "2.5"}), retry_after({"retry-after": "soon"})
    (2.5, None)
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        until = parsedate_to_datetime(headers["retry-after"]).timestamp()
        now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return max(0.0, until - now)

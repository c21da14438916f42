"""A server with OpenAI's chat completions that misbehaves as it is told, counts, and answers the same to the same.

Its answers are a function of messages, seed and max_tokens alone, so two ways of asking can be compared. It honours
`Idempotency-Key`: what was computed for a key is sent again, not computed again; `computed` counts by key (by content
where a request has none). Faults are scripted by request, see `FAULTS`.

In a test, in a thread of its own:

    with Server(script=first("500", "cut")) as server:      # every request fails twice, then is answered
        ... OPENAI_BASE_URL=server.url ...
        assert set(server.computed.values()) == {1}

As a process that outlives the client (it prints its URL as its first line and stops with SIGTERM; `GET /count` at the
server's root tells requests, computed, most computations of one key, tokens, most requests in flight):

    python tests/openai_server.py --faults 0.3 --at-most 3 --delay 0.01
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

WORDS = [*"abcdefghij0123456789+=", "the", "sum", "of", "\n\n", "naïve", "你好", "🙂", "</s>", "<b>", "apples"]


@dataclass(frozen=True)
class Call:
    """One arrival."""

    key: str  # the Idempotency-Key, or a hash of the body
    attempt: int  # arrivals of this key before
    number: int  # arrivals of all keys before
    body: Mapping[str, Any]
    headers: Mapping[str, str]  # names in small letters


Script = Callable[[Call], str | None]  # the name of a fault, or None for a good answer


def first(*faults: str | None) -> Script:
    """Every key meets these faults in turn, then is answered."""
    return lambda call: faults[call.attempt] if call.attempt < len(faults) else None


def arriving(*faults: str | None) -> Script:
    """The first arrivals of all meet these faults in turn."""
    return lambda call: faults[call.number] if call.number < len(faults) else None


def drawn(rate: float, at_most: int, seed: int = 0) -> Script:
    """Faults that pass, drawn by (key, attempt): a share of arrivals, none after `at_most` arrivals of a key."""

    def script(call: Call) -> str | None:
        rng = random.Random(f"{seed} {call.key} {call.attempt}")
        return rng.choice(PASSING) if call.attempt < at_most and rng.random() < rate else None

    return script


def answer_to(body: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """(text, finish_reason, prompt tokens, response tokens): one word is one token."""
    messages = [[m["role"], m["content"]] for m in body["messages"]]
    rng = random.Random(hashlib.sha256(json.dumps([messages, body.get("seed")]).encode()).digest())
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 24))]
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 30
    asked = sum(len(content.split()) + 3 for _, content in messages)
    return " ".join(words[:limit]), "stop" if len(words) <= limit else "length", asked, min(len(words), limit)


def completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer as chat completions put it."""
    text, finish, prompt_tokens, response_tokens = answer_to(body)
    return {
        "id": f"chatcmpl-{random.getrandbits(64):x}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": response_tokens,
            "total_tokens": prompt_tokens + response_tokens,
        },
    }


@dataclass
class Reply:
    """What goes over the wire; `sent` bytes of the body at most, then the connection is cut."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    raw: bool = False  # the body alone, without a head


def _json(content: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), headers=headers)


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return _json({"error": error}, status, **headers)


def _with(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Reply]:
    """A good completion, changed."""

    def changed(good: dict[str, Any]) -> Reply:
        good = json.loads(json.dumps(good))
        change(good)
        return _json(good)

    return changed


def _message(**changes: Any) -> Callable[[dict[str, Any]], Reply]:
    return _with(lambda good: good["choices"][0]["message"].update(changes))


def _finish(reason: str | None) -> Callable[[dict[str, Any]], Reply]:
    return _with(lambda good: good["choices"][0].update(finish_reason=reason))


# Faults that come before anything is computed: 429 (asks to wait `retry_after` seconds), 429_date, 500, 502, 503, hang
# (never answers), cut (closes the connection at once). After it was computed: slow, lost (closes before the head),
# torn (closes within the body), and the bodies below.
BEFORE: dict[str, Callable[[Server], Reply]] = {
    "429": lambda server: _error(429, "slow down", **{"Retry-After": str(server.retry_after)}),
    "429_plain": lambda server: _error(429, "slow down"),
    "429_date": lambda server: _error(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429_quota": lambda server: _error(429, "You exceeded your current quota", code="insufficient_quota"),
    "500": lambda server: _error(500, "out of\n\x1b[31mluck\x1b[0m"),
    "502": lambda server: Reply(502, b"<html><b>Bad gateway</b></html>", "text/html"),
    "503": lambda server: _error(503, "starting", **{"Retry-After": "nonsense"}),
    "400": lambda server: _error(400, "This model's maximum context length is 9 tokens. " + "x" * 5000),
    "403": lambda server: _error(403, "not for you"),
    "404": lambda server: _error(404, "The model does not exist", code="model_not_found"),
    "422": lambda server: _json({"detail": [{"loc": ["body", "n"], "msg": "no"}]}, 422),
    "no_top_k": lambda server: _error(400, "Unrecognized request argument supplied: top_k"),
    "no_temperature": lambda server: _error(400, "Unsupported value", param="temperature", code="unsupported_value"),
}
AFTER: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "slow": _json,
    "lost": lambda good: Reply(sent=0),
    "torn": lambda good: Reply(body=json.dumps(good).encode(), sent=len(json.dumps(good)) // 2),
    "truncated": lambda good: Reply(body=json.dumps(good).encode()[:-20]),
    "malformed": lambda good: Reply(body=b'{"choices": [nothing]}'),
    "not_utf8": lambda good: Reply(body=b'{"choices": "\xff\xfe"}'),
    "html": lambda good: Reply(body=b"<html>hello</html>", kind="text/html"),
    "not_gzip": lambda good: Reply(body=b"plain", headers={"Content-Encoding": "gzip"}),
    "not_http": lambda good: Reply(body=b"220 mail server ready\r\n\r\n", raw=True),
    "a_list": lambda good: _json([good]),
    "no_choices": _with(lambda good: good.update(choices=[])),
    "null_choices": _with(lambda good: good.update(choices=None)),
    "choice_is_text": _with(lambda good: good.update(choices=["hello"])),
    "null_message": _with(lambda good: good["choices"][0].update(message=None)),
    "null_content": _message(content=None),
    "unfinished": _finish(None),
    "aborted": _finish("abort"),
    "content_is_list": _message(content=[{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]),
    "thought_only": _message(content=None, reasoning_content="so far"),
    "thought": _message(reasoning_content="hmm"),
    "refusal": _message(content=None, refusal="I can not."),
    "half_a_surrogate": _message(content="a \ud83d b"),
    "empty": _message(content=""),
    "filtered": _finish("content_filter"),
    "tool_calls": _finish("tool_calls"),
    "odd_finish": _finish("tired\x07"),
    "no_usage": _with(lambda good: good.pop("usage")),
    "odd_usage": _with(lambda good: good.update(usage={"prompt_tokens": "many", "completion_tokens": -1})),
}
FAULTS = (*BEFORE, *AFTER, "hang", "cut")
PASSING = (  # after which a good answer comes, if the client asks again
    "429", "429_plain", "429_date", "500", "502", "503", "cut", "slow", "lost", "torn", "truncated", "malformed", "not_utf8",
    "html", "not_gzip", "not_http", "a_list", "no_choices", "null_choices", "choice_is_text", "null_message", "null_content", "unfinished", "aborted",
)  # fmt: skip
REASONS = {200: "OK", 429: "Too Many Requests"}


class Server:
    """The server, in a thread of its own.

    Args:
        script: which fault an arrival meets. None: none.
        delay: seconds that an answer takes to compute.
        slow: seconds that the fault "slow" adds.
        retry_after: seconds that a 429 asks to wait.
        key: what the Authorization header must hold; a wrong one is refused, with what was sent echoed.
        echo: put the Authorization header into every body and header, as a careless proxy would.
        models: whose names the server knows; others are 404. None: any.
        honours: whether an Idempotency-Key is honoured.
        port: 0 for any.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        delay: float = 0.0,
        slow: float = 0.02,
        retry_after: float = 0.01,
        key: str | None = None,
        echo: bool = False,
        models: tuple[str, ...] | None = None,
        honours: bool = True,
        port: int = 0,
    ) -> None:
        self.script, self.delay, self.slow, self.retry_after = script or first(), delay, slow, retry_after
        self.key, self.echo, self.models, self.honours, self.port = key, echo, models, honours, port
        self.calls: list[Call] = []
        self.computed: Counter[str] = Counter()
        self.tokens = 0
        self.in_flight = self.most_in_flight = 0
        self._arrivals: Counter[str] = Counter()
        self._answers: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._started.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """What OPENAI_BASE_URL is set to."""
        return f"http://127.0.0.1:{self.port}/v1"

    def count(self) -> dict[str, int]:
        """Totals."""
        return {
            "requests": len(self.calls),
            "computed": self.computed.total(),
            "most_of_a_key": max(self.computed.values(), default=0),
            "keys": len(self.computed),
            "tokens": self.tokens,
            "most_in_flight": self.most_in_flight,
        }

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in lines if h)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    reply = await self._reply(line.split(" ")[1], headers, body)
                finally:
                    self.in_flight -= 1
                if not await self._send(writer, reply, headers):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server stops
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply, asked: Mapping[str, str]) -> bool:
        """Whether the connection stays open."""
        if reply.sent == 0 or reply.raw:
            writer.write(reply.body[: reply.sent])
            await writer.drain()
            return False
        headers = {"Content-Type": reply.kind, "Content-Length": str(len(reply.body)), **reply.headers}
        if self.echo:
            headers["X-You-Sent"] = asked.get("authorization", "")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reason = REASONS.get(reply.status, "Whatever")
        writer.write(f"HTTP/1.1 {reply.status} {reason}\r\n{head}\r\n".encode() + reply.body[: reply.sent])
        await writer.drain()
        return reply.sent is None

    async def _reply(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        sent = headers.get("authorization", "")
        if path == "/count":
            return _json(self.count())
        if self.key is not None and sent != f"Bearer {self.key}":
            return _error(401, f"Incorrect API key provided: {sent}", code="invalid_api_key")
        if path == "/v1/models":
            return _json({"object": "list", "data": [{"id": name} for name in self.models or ("any",)]})
        if path != "/v1/chat/completions":
            return Reply(404, b"not found", "text/plain")
        reply = await self._complete(headers, json.loads(body))
        if self.echo and not reply.headers.get("Content-Encoding"):
            for name in ("message", "content"):
                reply.body = reply.body.replace(f'"{name}": "'.encode(), f'"{name}": "you sent {sent}; '.encode())
        return reply

    async def _complete(self, headers: Mapping[str, str], body: dict[str, Any]) -> Reply:
        content = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        key = headers.get("idempotency-key") or content
        call = Call(key, self._arrivals[key], len(self.calls), body, headers)
        self._arrivals[key] += 1
        self.calls.append(call)
        if self.models is not None and body["model"] not in self.models:
            return BEFORE["404"](self)
        fault = self.script(call)
        assert fault is None or fault in FAULTS, fault
        if fault == "cut":
            return Reply(sent=0)
        if fault == "hang":
            await self._stop.wait()
            return Reply(sent=0)
        if fault in BEFORE:
            return BEFORE[fault](self)
        good = await self._compute(key, body)
        if fault == "slow":
            await asyncio.sleep(self.slow)
        return AFTER[fault](good) if fault else _json(good)

    async def _compute(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        """A key is computed once, also when it is asked again while that goes on, or after its asker has gone."""

        async def compute() -> dict[str, Any]:
            self.computed[key] += 1
            if self.delay:
                await asyncio.sleep(self.delay)
            good = completion(body)
            self.tokens += good["usage"]["total_tokens"]
            return good

        if not self.honours:
            return await compute()
        if key not in self._answers:
            self._answers[key] = asyncio.ensure_future(compute())
        return await asyncio.shield(self._answers[key])


def count_at(url: str) -> dict[str, int]:
    """What a server that runs as a process has counted; `url` is the one it printed."""
    with urlopen(url.removesuffix("/v1") + "/count", timeout=10) as reply:
        return json.load(reply)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of arrivals that meet a fault that passes")
    parser.add_argument("--at-most", type=int, default=3, help="faults of one key")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds an answer takes")
    given = parser.parse_args()
    server = Server(drawn(given.faults, given.at_most, given.seed), delay=given.delay, port=given.port)
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

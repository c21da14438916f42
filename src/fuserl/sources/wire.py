"""A request as OpenAI's chat completions put it, and what comes back as an answer or a failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fuserl.errors import FuserlError
from fuserl.sources.keys import Key
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.resumed import clean
from fuserl.sources.source import Source

NEUTRAL = {**asdict(Sampling(max_tokens=1)), "max_tokens": None}  # values that are the same as not to say anything
FINISHED = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop", "length": "length"}
FINAL = {
    "content_filter": "the server's filter cut the answer off",
    "tool_calls": "the model called a tool, there is none",
    "function_call": "the model called a tool, there is none",
}
INTERRUPTED = (None, "", "abort", "error")  # the server stopped, not the model
LOOKED_AT = 1 << 16  # bytes of a body that is no completion
THOUGHTS = ("reasoning_content", "reasoning")  # where servers put what a model thought before it answered


@dataclass(frozen=True)
class Wire:
    """What goes over the wire for one source, and what its answers cost.

    Args:
        parameters: how the server calls each field of `Sampling`, `seed` and `date_string`; a dot leads into an object.
            None: it has no such parameter, so it is not sent, and must be neutral (`seed` and `date_string` need not).
        price: US dollars for a million tokens, `input` and `output`; None: nobody knows.
        key: is taken out of whatever the server says.
    """

    source: Source
    parameters: Mapping[str, str | None]
    price: Mapping[str, float | None]
    key: Key

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON of a request; its sampling is all there, so the server's defaults decide nothing.

        Raises:
            FuserlError: a setting that is not neutral has no name at this server.
        """
        body: dict[str, Any] = {
            "model": self.source.path,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        }
        said = request.sampling.plain() | {"seed": request.seed, "date_string": self.source.date_string}
        for name, value in said.items():
            place = self.parameters.get(name)
            if place is None:
                self._require_neutral(name, value)
            elif name != "stop" or value:  # an empty list of stop texts is refused by some
                _put(body, place.split("."), list(value) if name == "stop" else value)
        return body

    def names_sent(self, body: Mapping[str, Any]) -> dict[str, str]:
        """The server's names of what a body holds -> ours, for messages."""
        places = {place.split(".")[0]: name for name, place in self.parameters.items() if place}
        return {place: name for place, name in places.items() if place in body}

    def read(self, request: Request, content: bytes) -> Answer | Failure:
        """What a server said with status 200.

        A body that is no completion, a completion that says nothing (no choice, null content), and one that the server
        interrupted are failures that pass. An answer that was filtered, or is a call of a tool, is a failure that
        stays. An empty text is an answer; so is a refusal, and a text that is all thought (`extra.reasoning_content`).
        Where usage is missing or nonsense, tokens are 0 and the cost is unknown.
        """
        try:
            completion = json.loads(content)
            choice = completion["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            ended = FINISHED.get(finish)
            text, thought = _text(message), next((_string(message[k]) for k in THOUGHTS if message.get(k)), None)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self._failure(request, "the server's answer is no chat completion", content, passing=True)
        if finish in INTERRUPTED:
            return self._failure(
                request, f"the server did not finish its answer (finish_reason {finish!r})", passing=True
            )
        if ended is None:
            why = FINAL.get(str(finish)) or self.key.line(f"the answer ended in a way we do not know: {finish}")
            return self._failure(request, why, passing=False)
        if text is None and thought is None:
            return self._failure(request, "the server answered nothing: its content is null", passing=True)
        tokens = _usage(completion.get("usage"))
        return Answer(
            key=request.key,
            text=clean(self.key.hidden(text or "")),
            finish_reason=ended,
            prompt_tokens=tokens[0] if tokens else 0,
            response_tokens=tokens[1] if tokens else 0,
            sampling=self._sampling(request),
            extra=self._extra(completion, tokens, thought),
        )

    def _sampling(self, request: Request) -> dict[str, Any]:
        """What decided: all that was sent, and neutral values of what this server has no name for."""
        seed = request.seed if self.parameters.get("seed") else None
        return {**request.sampling.plain(), "stop": list(request.sampling.stop), "seed": seed}

    def _extra(
        self, completion: Mapping[str, Any], tokens: tuple[int, int] | None, thought: str | None
    ) -> dict[str, Any]:
        """Nothing that differs from call to call (times, ids, attempts): equal requests have equal answers."""
        extra: dict[str, Any] = {"engine": "openai", "template": "server"}
        if isinstance(model := completion.get("model"), str):
            extra["model"] = self.key.line(model)
        if thought is not None:
            extra["reasoning_content"] = clean(self.key.hidden(thought))
        prices = self.price.get("input"), self.price.get("output")
        if tokens is None:
            extra["usage"] = "unknown"
        elif prices[0] is not None and prices[1] is not None:
            extra["cost"] = round((tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6, 9)
        return extra

    def _failure(self, request: Request, what: str, content: bytes = b"", *, passing: bool) -> Failure:
        said = self.key.line(content[:LOOKED_AT].decode("utf-8", "replace"))
        return Failure(request.key, f"{what}: {said}" if said else what, passing)

    def _require_neutral(self, name: str, value: Any) -> None:
        if name not in NEUTRAL or value == NEUTRAL[name]:
            return
        away = "" if NEUTRAL[name] is None else f"set it to {NEUTRAL[name]!r}, or "
        raise FuserlError(
            f"`{name}` is {value!r}, and the server is said to have no such parameter",
            where=f"`sources.{self.source.name}.sampling.{name}`",
            hint=f"{away}say what the server calls it with `engine.parameters.{name}=...`",
        )


def _put(body: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        body = body.setdefault(part, {})
    body[path[-1]] = value


def _text(message: Any) -> str | None:
    """The content: a text, text parts one after the other, or what a refusal says; None where there is none."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_string(part["text"]) for part in content if part.get("type") == "text")
    if content is None:
        content = message.get("refusal")
    return None if content is None else _string(content)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _usage(usage: Any) -> tuple[int, int] | None:
    """(prompt tokens, response tokens), or None."""
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    sound = all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 31 for count in counts)
    return (counts[0], counts[1]) if sound else None  # type: ignore[return-value]

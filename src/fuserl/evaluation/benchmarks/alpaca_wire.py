"""A judge's request with what its annotator wants beside a text: probabilities of its first tokens, a function's call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.wire import Wire


@dataclass(frozen=True)
class JudgeWire(Wire):
    """A wire that sends `beside` as it is, and keeps the server's choice in an answer's `extra["choice"]`."""

    beside: Mapping[str, Any]

    def body(self, request: Request) -> dict[str, Any]:
        """See `Wire`."""
        return super().body(request) | dict(self.beside)

    def read(self, request: Request, content: bytes) -> Answer | Failure:
        """See `Wire`; where the annotator offers a function, the arguments of its call are the text."""
        choice = self._choice(content)
        called = _called(choice.get("message")) if choice else None
        if choice is not None and called is not None:
            words = {"message": {"role": "assistant", "content": called}, "finish_reason": "stop"}
            content = json.dumps({**json.loads(content), "choices": [words]}).encode()
        answer = super().read(request, content)
        if isinstance(answer, Failure):
            return answer
        if choice is None:
            return Failure(request.key, "the server's answer holds a probability that is no number", passing=True)
        kept = {"index": 0, "text": answer.text, "logprobs": choice.get("logprobs")}
        return replace(answer, extra={**answer.extra, "choice": kept})

    def _choice(self, content: bytes) -> dict[str, Any] | None:
        """The first choice without the key; None where there is none, or one with NaN: comparing it would say something."""
        try:
            choice = json.loads(self.key.hidden(content.decode()), parse_constant=_limit)["choices"][0]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return choice if isinstance(choice, dict) else None


def _limit(constant: str) -> float:
    """Minus infinity is the log of 0; NaN and plus infinity are nothing's."""
    if constant != "-Infinity":
        raise ValueError(constant)
    return float("-inf")


def _called(message: Any) -> str | None:
    """The arguments of a message's only call of a function; None where there is none."""
    try:
        call = message.get("function_call") or message["tool_calls"][0]["function"]
        return call["arguments"] if isinstance(call["arguments"], str) else None
    except (AttributeError, LookupError, TypeError):
        return None

"""The wrapper that never asks twice: what a journal holds is answered, what an engine answers is kept at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fuserl.records.journal import Journal
from fuserl.sources.protocol import Answer, Engine, Failure, Request


class Resumed:
    """An engine beside a journal. An answer is on disk before anybody sees it; failures never are.

    Unlike other engines it says only what is new: a request whose answer the journal holds, or that is under way
    already, is passed over in silence, so that a million finished answers cost a restart no reading.
    """

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine, self.journal = engine, journal

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """New answers, once kept, and failures, in any order."""
        under_way: set[str] = set()

        def unanswered() -> Iterator[Request]:
            for request in requests:
                if request.key not in under_way and request.key not in self.journal:
                    under_way.add(request.key)
                    yield request

        for result in self.engine.answer(unanswered()):
            if result.key not in under_way:
                raise ValueError(f"the engine answered {result.key}, which it was not asked, or twice")
            if isinstance(result, Answer):
                self.journal.add(result.key, record_of(result))
            under_way.discard(result.key)
            yield result

    def close(self) -> None:
        """Close the engine; the journal belongs to its opener."""
        self.engine.close()


def record_of(answer: Answer) -> Mapping[str, Any]:
    """What is kept of an answer: plain data, and text that any file can hold."""
    return {
        "text": clean(answer.text),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "sampling": dict(answer.sampling),
        "template_hash": answer.template_hash,
        "extra": dict(answer.extra),
    }


def clean(text: str) -> str:
    """Halves of surrogate pairs are joined; one without its other half becomes the replacement character.

    >>> clean("a\\ud83d\\ude00b\\ud800") == "a\\U0001f600b\\ufffd"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""From prompts and journals to groups: prompts as given, sources by name, samples by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fuserl.records.journal import Journal
from fuserl.records.schema import PromptGroup, Response
from fuserl.sources.asked import Asked


def grouped(
    prompts: Iterable[PromptGroup], asked: Mapping[str, Asked], journals: Mapping[str, Journal]
) -> Iterator[PromptGroup]:
    """Every prompt with the responses it came with and all that the journals hold for it; one group in memory at a time.

    The order in which answers came leaves no trace.
    """
    for group in prompts:
        responses = (response for name in sorted(asked) for response in _responses(group, asked[name], journals[name]))
        yield replace(group, responses=(*group.responses, *responses))


def _responses(group: PromptGroup, asked: Asked, journal: Journal) -> Iterator[Response]:
    for sample, (key, seed) in enumerate(zip(asked.keys(group), asked.seeds(group), strict=True)):
        record = journal.get(key)
        if record is not None:
            yield response_of(record, asked.source.name, sample, seed)


def response_of(record: Mapping[str, Any], source: str, sample: int, seed: int) -> Response:
    """A journal's record as the data set keeps it; an engine that could not be told the seed says so itself."""
    counted = ("prompt_tokens", "response_tokens", "template_hash")
    return Response(
        source=source,
        text=record["text"],
        sample=sample,
        finish_reason=record["finish_reason"],
        sampling={"seed": seed} | record["sampling"],
        extra={key: record[key] for key in counted if record[key] is not None} | record["extra"],
    )

"""Groups as lines of text: what lies on disk between two steps of `select`, to be sorted or weighed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from fuserl.records.schema import Message, PromptGroup, Response

_RESPONSE = tuple(field.name for field in fields(Response))


def to_line(group: PromptGroup, note: Any = None) -> str:
    """A group and a note beside it, without the end of the line. What is no JSON becomes a text, as in a data set."""
    prompt = [[message.role, message.content, dict(message.extra)] for message in group.prompt]
    responses = [[getattr(response, name) for name in _RESPONSE] for response in group.responses]
    row = [note, group.id, prompt, responses, group.domain, group.reference, dict(group.extra)]
    return json.dumps(row, default=str)


def from_line(line: str) -> tuple[PromptGroup, Any]:
    """What `to_line` wrote."""
    note, prompt_id, prompt, responses, domain, reference, extra = json.loads(line)
    messages = tuple(Message(*message) for message in prompt)
    return PromptGroup(prompt_id, messages, tuple(Response(*row) for row in responses), domain, reference, extra), note


def read_lines(path: Path) -> Iterator[tuple[PromptGroup, Any]]:
    """The groups of a file with their notes; none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield from_line(line)

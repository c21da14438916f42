"""The unit of everything: a group, one prompt with all its responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
VERDICTS = ("right", "wrong", "unknown")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str  # plain text; never template tokens
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # unknown fields (name, tool_calls), kept


@dataclass(frozen=True, slots=True)
class Response:
    """What one source answered, once."""

    source: str  # the model that wrote it, or "human"
    text: str  # non-empty; never template tokens
    sample: int = 0  # counts a source's answers to this prompt, from 0
    reward: float | None = None  # the scorer's units, higher is better; None until scored
    verdict: str | None = None  # one of VERDICTS; None where nothing was verified
    weight: float | None = None  # a weight given by the data set's author (weights=given)
    finish_reason: str | None = None  # "stop", "length", ...
    sampling: Mapping[str, Any] | None = None  # effective sampling parameters
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields we do not know, kept


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt with its responses."""

    id: str  # unique in the data set
    prompt: tuple[Message, ...]  # ends with a user's turn
    responses: tuple[Response, ...]  # at least one
    domain: str = "general"
    reference: str | None = None  # gold answer; unit tests for code
    extra: Mapping[str, Any] = field(default_factory=dict)

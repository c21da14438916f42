"""Splits by hash: the same prompt lands on the same side, whatever else the data set holds and in whatever order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from fuserl.records.schema import Message, PromptGroup


def prompt_digest(prompt: Iterable[Message]) -> str:
    """16 hexadecimal digits of what a model sees of a conversation: roles and contents.

    >>> prompt_digest([Message("user", "2 + 2?", extra={"name": "Ada"})]) == prompt_digest([Message("user", "2 + 2?")])
    True
    """
    content = json.dumps([[message.role, message.content] for message in prompt])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def unit(key: str, salt: str = "part") -> float:
    """A number in [0, 1), uniform over keys and fixed for each.

    >>> unit("gsm8k-test-17") == unit("gsm8k-test-17")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:8], "big") / 2**64


def in_part(prompt_id: str, low: float, high: float) -> bool:
    """Whether the prompt belongs to the share [low, high) of all prompts; depends on its id alone."""
    return low <= unit(prompt_id) < high


def is_held_out(group: PromptGroup, fraction: float, salt: str) -> bool:
    """Whether the group belongs to the `fraction` that is held out; equal prompts stand on the same side."""
    return unit(prompt_digest(group.prompt), salt) < fraction


def by_hash(groups: Iterable[PromptGroup], fraction: float, salt: str) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """(the rest, about `fraction` of the prompts held out)."""
    rest: list[PromptGroup] = []
    held_out: list[PromptGroup] = []
    for group in groups:
        (held_out if is_held_out(group, fraction, salt) else rest).append(group)
    return rest, held_out

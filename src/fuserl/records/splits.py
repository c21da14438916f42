"""Splits that depend on a prompt's id alone: the same prompt lands on the same side in every data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fuserl.records.schema import PromptGroup


def unit(prompt_id: str, salt: str = "part") -> float:
    """A number in [0, 1), uniform over ids and fixed for each.

    >>> unit("gsm8k-test-17") == unit("gsm8k-test-17")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{salt}:{prompt_id}".encode()).digest()[:8], "big") / 2**64


def in_part(prompt_id: str, low: float, high: float) -> bool:
    """Whether the prompt belongs to the share [low, high) of all prompts."""
    return low <= unit(prompt_id) < high


def by_hash(groups: Iterable[PromptGroup], fraction: float, salt: str) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """(the rest, about `fraction` of the prompts held out)."""
    rest: list[PromptGroup] = []
    held_out: list[PromptGroup] = []
    for group in groups:
        (held_out if unit(group.id, salt) < fraction else rest).append(group)
    return rest, held_out

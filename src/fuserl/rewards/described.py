"""Functions that configuration picked, told as plain data."""

from __future__ import annotations

from functools import partial
from typing import Any


def described(value: Any) -> Any:
    """A function by its dotted name, with the settings that a partial binds; other values as they are.

    >>> described(partial(int, base=2))
    {'function': 'builtins.int', 'base': 2}
    """
    if isinstance(value, partial):
        return {"function": described(value.func), **described(value.keywords)}
    if isinstance(value, dict):
        return {name: described(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value

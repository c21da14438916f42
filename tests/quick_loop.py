"""An event loop whose clock jumps to the next timer instead of waiting for it: hours of pauses take no time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class QuickLoop(asyncio.SelectorEventLoop):
    """Time passes only while nothing else can be done."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:
            self._now = max(
                [self._now, *sorted(timer.when() for timer in self._scheduled if not timer.cancelled())[:1]]
            )
        super()._run_once()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in quick time."""
    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        return runner.run(coroutine)

"""Asking again what failed in passing. An `Ask` is an engine of one request; wrappers take one and give one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fuserl.sources.protocol import Answer, Failure, Request

Ask = Callable[[Request], Awaitable[Answer | Failure]]


@dataclass(frozen=True)
class Backoff:
    """How long to pause after failures: exponential with full jitter.

    The n-th pause (from 0) is uniform between 0 and `first` x 2**n seconds, `longest` at most, so that clients that
    failed together do not come back together.
    """

    first: float  # seconds
    longest: float  # seconds

    def pause(self, n: int) -> float:
        """Seconds."""
        return random.uniform(0.0, self.ceiling(n))

    def ceiling(self, n: int) -> float:
        """The n-th pause at most."""
        return min(self.longest, self.first * 2.0 ** min(n, 64))


def retrying(ask: Ask, *, attempts: int, backoff: Backoff) -> Ask:
    """Ask again while the failure is one that passes; the last failure is told.

    Args:
        attempts: askings of one request, 1 or more.
        backoff: pauses between them. A server's wish to wait longer is honoured.
    """

    async def ask_again(request: Request) -> Answer | Failure:
        for attempt in range(attempts - 1):
            outcome = await ask(request)
            if isinstance(outcome, Answer) or not outcome.passing:
                return outcome
            await asyncio.sleep(max(backoff.pause(attempt), outcome.wait or 0.0))
        return await ask(request)

    return ask_again

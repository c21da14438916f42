"""Several servers as one: the least busy is asked; one that fails rests while the others go on, and is tried again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.retrying import Ask, Backoff

STRIKES = 3  # failures in a row after which a server rests: one alone may be the request's fault


@dataclass
class Member:
    """A server of the pool and how it does."""

    ask: Ask
    room: int  # requests that it may have under way now: fewer after it asked for less, one when it comes back
    load: int = 0  # requests under way
    asked: int = 0  # requests so far
    strikes: int = 0  # failures since its last answer
    rests: int = 0  # since its last answer
    rested: float = 0.0  # the loop's time until which it rests
    cut: float = -math.inf  # the loop's time when its room was cut last: what was sent before tells nothing new


class Pool:
    """Servers that answer for the same model; also a pool of one, which rests as well.

    A server that fails three times in a row rests (longer every time), then gets one request, and more again with every
    answer. One that asks us to wait (429, Retry-After) rests as long, and then gets half as many at once. Requests wait
    meanwhile, and do not use up their attempts. A failure goes back without its `wait`: the server has its rest, and the
    request may go to another.

    Args:
        asks: a server each.
        concurrency: requests under way at one server, at most.
        backoff: rests.
        patience: seconds of failures alone after which, with all servers at rest, this is given up.

    Raises:
        FuserlError: when asked, because all servers rest, and will have failed for `patience` seconds when one is back.
    """

    def __init__(self, asks: Sequence[Ask], *, concurrency: int, backoff: Backoff, patience: float) -> None:
        self.members = [Member(ask, concurrency) for ask in asks]
        self._concurrency, self._backoff, self._patience = concurrency, backoff, patience
        self._failing_since: float | None = None  # the first failure after the last answer
        self._last_failure = ""
        self._changed = asyncio.Event()

    async def __call__(self, request: Request) -> Answer | Failure:
        """Ask the least busy server; wait while none can be asked. One that has just rested comes after the others."""
        member = await self._free_member()
        began = asyncio.get_running_loop().time()
        member.load, member.asked = member.load + 1, member.asked + 1
        try:
            outcome = await member.ask(request)
        finally:
            member.load -= 1
            self._changed.set()
        if isinstance(outcome, Failure) and outcome.passing:
            self._failed(member, outcome, began)
            return replace(outcome, wait=None)
        self._failing_since = None
        if began > member.cut:
            member.strikes, member.rests = 0, 0
            member.room = min(self._concurrency, member.room + 1)
        return outcome

    def _failed(self, member: Member, failure: Failure, began: float) -> None:
        now = asyncio.get_running_loop().time()
        self._last_failure = failure.what
        self._failing_since = now if self._failing_since is None else self._failing_since
        if failure.wait is not None:
            member.rested = max(member.rested, now + failure.wait)
        else:
            member.strikes += 1
        if began <= member.cut:
            return
        if failure.wait is not None:
            member.cut, member.room = now, max(1, member.room // 2)
        elif member.strikes >= STRIKES:
            member.cut, member.room = now, 1
            member.rested = max(member.rested, now + self._backoff.ceiling(member.rests))
            member.rests += 1

    async def _free_member(self) -> Member:
        now = asyncio.get_running_loop().time
        while True:
            free = [m for m in self.members if m.rested <= now() and m.load < m.room]
            if free:
                return min(
                    free, key=lambda m: (m.rests > 0, m.load, m.asked)
                )  # what failed last is tried when others are full
            resting = [m.rested for m in self.members if m.rested > now()]
            if len(resting) == len(self.members):
                self._lose_patience(min(resting))
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(resting) - now() if resting else None):
                    await self._changed.wait()

    def _lose_patience(self, back: float) -> None:
        since = asyncio.get_running_loop().time() if self._failing_since is None else self._failing_since
        waited = back - since
        if waited > self._patience:
            raise FuserlError(
                f"no server answers: the next try would come {waited:,.0f} s after the first failure "
                f"(the last one: {self._last_failure})",
                where="`engine.url`" if len(self.members) == 1 else "`engine.pool`",
                hint="what was answered is kept: see to the server and run the same command again, "
                "or wait longer with `engine.patience`",
            )

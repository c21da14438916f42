"""Rate limits: requests and tokens a minute, as hosted servers count them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.retrying import Ask

CHARACTERS = 4  # of English in a token, about; only until the server says how many there were


class Pace:
    """An even pace: who takes an amount may start when all that was taken before is worked off.

    In any span of time what starts is at most the rate times the span, and one amount more; no burst is saved up.
    First come, first served. An amount may be larger than a minute's.
    """

    def __init__(self, a_minute: float) -> None:
        self._seconds = 60.0 / a_minute  # of one unit
        self._free = 0.0  # the loop's time at which all that was taken is worked off
        self._turn = asyncio.Lock()
        self._corrected = asyncio.Event()

    async def take(self, amount: float) -> None:
        """Wait for one's turn."""
        now = asyncio.get_running_loop().time
        async with self._turn:
            while (pause := self._free - now()) > 0:
                self._corrected.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._corrected.wait()
            self._free = max(self._free, now()) + amount * self._seconds

    def correct(self, more: float) -> None:
        """What was taken turned out to be so much more, or, negative, less."""
        self._free += more * self._seconds
        self._corrected.set()


def limited(ask: Ask, *, requests: float | None, tokens: float | None) -> Ask:
    """Ask no faster than so many requests and so many tokens (prompt and answer) a minute; None: no limit.

    How many tokens a request will cost is guessed from its prompt's length and the answers so far (until there are
    some, `max_tokens`), and put right by the answer. A request that failed keeps what was guessed: it may have cost it.
    """
    paces = Pace(requests) if requests else None, Pace(tokens) if tokens else None
    answers, said = 0, 0

    def guess(request: Request) -> float:
        """Tokens, prompt and answer."""
        prompt = sum(len(message.content) for message in request.messages) / CHARACTERS
        most = request.sampling.max_tokens
        return prompt + (min(most, said / answers) if answers else most)

    async def ask_in_time(request: Request) -> Answer | Failure:
        nonlocal answers, said
        if paces[0]:
            await paces[0].take(1)
        if not paces[1]:
            return await ask(request)
        guessed = guess(request)
        await paces[1].take(guessed)
        outcome = await ask(request)
        if isinstance(outcome, Answer) and outcome.prompt_tokens:
            answers, said = answers + 1, said + outcome.response_tokens
            paces[1].correct(outcome.prompt_tokens + outcome.response_tokens - guessed)
        return outcome

    return ask_in_time if requests or tokens else ask

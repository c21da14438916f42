"""Retries, rate limits and pools, in quick time: whole hours of pauses without waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from quick_loop import run

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.sources.limited import Pace, limited
from fuserl.sources.pooled import STRIKES, Pool
from fuserl.sources.protocol import Answer, Failure, Request, Sampling
from fuserl.sources.retrying import Backoff, retrying

SECONDS = st.floats(0, 1e3)
BACKOFF = Backoff(1.0, 60.0)


def request(n: int = 0, text: str = "hello", max_tokens: int = 100) -> Request:
    return Request(f"k{n}", (Message("user", text),), Sampling(max_tokens), n)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Played:
    """A server that takes `latency` seconds and does as `script(seconds since the start, requests so far)` says."""

    script: Callable[[float, int], Failure | None] = lambda _seconds, _number: None
    latency: float = 1.0
    tokens: tuple[int, int] = (10, 20)
    began: list[float] = field(default_factory=list)  # seconds since the start
    load: int = 0
    most: int = 0

    async def __call__(self, asked: Request) -> Answer | Failure:
        number, start = len(self.began), now() - 1000.0
        self.began.append(start)
        self.load, self.most = self.load + 1, max(self.most, self.load + 1)
        await asyncio.sleep(self.latency)
        self.load -= 1
        return self.script(start, number) or Answer(asked.key, "hi", "stop", *self.tokens, {})


def passing(wait: float | None = None) -> Failure:
    return Failure("k", "bad luck", passing=True, wait=wait)


async def all_of(ask, num: int, concurrency: int = 16, **kinds) -> list[Answer | Failure]:
    """So many requests, so many at once."""
    left, found = iter(range(num)), []

    async def worker() -> None:
        for n in left:
            found.append(await ask(request(n, **kinds)))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return found


# Retries


@given(SECONDS, SECONDS, st.integers(0, 2000))
def test_a_pause_is_between_nothing_and_the_doubled_first_or_the_longest(first, longest, n):
    backoff = Backoff(first, longest)
    assert 0 <= backoff.pause(n) <= backoff.ceiling(n) <= longest
    assert n > 60 or backoff.ceiling(n) == min(longest, first * 2**n)


def test_pauses_fill_their_range():
    pauses = sorted(BACKOFF.pause(3) for _ in range(2000))
    assert pauses[0] < 0.5
    assert 3.5 < pauses[1000] < 4.5
    assert pauses[-1] > 7.5


@given(st.integers(1, 12), st.integers(0, 15), SECONDS)
def test_so_many_attempts_and_pauses_of_such_length(attempts, failures, longest):
    backoff = Backoff(1.0, longest)
    server = Played(lambda _, number: passing() if number < failures else None, latency=0.0)

    async def body() -> tuple[Answer | Failure, float]:
        return await retrying(server, attempts=attempts, backoff=backoff)(request()), now() - 1000.0

    outcome, took = run(body())
    asked = min(attempts, failures + 1)
    assert isinstance(outcome, Answer) == (failures < attempts)
    assert len(server.began) == asked
    assert took <= sum(backoff.ceiling(n) for n in range(asked - 1)) + 1e-6


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=5))
def test_a_wish_to_wait_is_honoured(waits):
    server = Played(lambda _, number: passing(waits[number]) if number < len(waits) else None, latency=0.0)
    assert isinstance(run(retrying(server, attempts=9, backoff=BACKOFF)(request())), Answer)
    gaps = [late - early for early, late in zip(server.began, server.began[1:], strict=False)]
    assert all(gap >= wait - 1e-6 for gap, wait in zip(gaps, waits, strict=True))


def test_a_failure_that_stays_is_not_asked_again():
    server = Played(lambda _seconds, _number: Failure("k", "no", passing=False))
    assert isinstance(run(retrying(server, attempts=9, backoff=BACKOFF)(request())), Failure)
    assert len(server.began) == 1


# Rate limits


@given(
    st.floats(1, 1e4),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 500), st.floats(-0.9, 1)), min_size=2, max_size=30),
)
def test_in_no_span_of_time_starts_more_than_the_rate_and_one_amount(a_minute, arrivals):
    """Also while amounts are corrected: what counts is what an amount turned out to be."""
    starts: list[tuple[float, float]] = []

    async def body() -> None:
        pace, clock = Pace(a_minute), 0.0

        async def one(arrival: float, amount: float, more: float) -> None:
            await asyncio.sleep(arrival)
            await pace.take(amount)
            starts.append((now(), amount * (1 + more)))
            pace.correct(amount * more)

        tasks = []
        for gap, amount, more in arrivals:
            clock += gap
            tasks.append(asyncio.ensure_future(one(clock, amount, more)))
        await asyncio.gather(*tasks)

    run(body())
    for first in range(len(starts)):
        within = 0.0
        for time, amount in starts[first:]:
            span = time - starts[first][0]
            assert within <= a_minute / 60 * span * (1 + 1e-6) + 1e-3, "all but the last fit into the span"
            within += amount


@pytest.mark.parametrize("concurrency", [1, 7, 64])
def test_first_come_first_served(concurrency):
    order: list[int] = []

    async def body() -> None:
        pace = Pace(60)

        async def one(n: int) -> None:
            await pace.take(1 + n % 5)
            order.append(n)

        await asyncio.gather(*(one(n) for n in range(concurrency)))

    run(body())
    assert order == list(range(concurrency))


def test_requests_a_minute():
    server = Played()
    run(all_of(limited(server, requests=30, tokens=None), 61))
    assert server.began[-1] == pytest.approx(120)


@pytest.mark.parametrize(("max_tokens", "text"), [(20, "x"), (50, "hi" * 20), (8000, "x" * 4000)])
def test_tokens_a_minute_are_used_up_whatever_was_guessed(max_tokens, text):
    """30 tokens a request, 3,000 a minute: 100 requests a minute, after the first guesses."""
    server = Played(latency=2.0)
    asked = limited(server, requests=None, tokens=3000)
    run(all_of(asked, 1000, max_tokens=max_tokens, text=text))
    begun = [sum(minute <= start / 60 < minute + 1 for start in server.began) for minute in range(2, 8)]
    late = max(0.0, (len(text) / 4 + max_tokens) / 3000 * 60)
    assert server.began[-1] <= 600 + 16 * late
    assert all(count <= 106 for count in begun), begun


def test_no_limit_is_no_wrapper():
    server = Played()
    assert limited(server, requests=None, tokens=None) is server


# Pools


def pool(*servers: Played, concurrency: int = 16, patience: float = 900.0) -> Pool:
    return Pool(servers, concurrency=concurrency, backoff=BACKOFF, patience=patience)


@profile(max_examples=40)
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=5), st.integers(1, 8))
def test_the_least_busy_server_is_asked(latencies, concurrency):
    servers = [Played(latency=latency) for latency in latencies]
    found = run(all_of(pool(*servers, concurrency=concurrency), 100, concurrency * len(servers)))
    assert len(found) == 100
    assert all(server.most <= concurrency for server in servers)
    fast, slow = min(servers, key=lambda s: s.latency), max(servers, key=lambda s: s.latency)
    assert len(fast.began) >= len(slow.began) - 1


def test_a_server_that_is_ten_times_as_fast_gets_ten_times_as_much_where_both_have_room():
    fast, slow = Played(latency=1.0), Played(latency=10.0)
    run(all_of(pool(fast, slow), 1100, 8))
    assert len(fast.began) == pytest.approx(1000, rel=0.02)


def test_a_server_that_failed_is_not_tried_while_others_have_room():
    dead, alive = Played(lambda _seconds, _number: passing()), Played()
    run(all_of(retrying(pool(dead, alive), attempts=9, backoff=BACKOFF), 2000, 4))
    assert len(dead.began) <= STRIKES + 1


@profile(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(1, 20))
def test_whatever_servers_do_every_request_is_answered_and_none_is_lost(seed, num, concurrency):
    rng = random.Random(seed)

    def script(_seconds: float, _number: int) -> Failure | None:
        fate = rng.random()
        return passing(rng.uniform(0, 90)) if fate < 0.2 else passing() if fate < 0.5 else None

    servers = [Played(script, latency=rng.uniform(0, 30)) for _ in range(num)]
    ask = retrying(pool(*servers, patience=1e9), attempts=10_000, backoff=BACKOFF)
    found = run(all_of(ask, 60, concurrency))
    assert sorted(answer.key for answer in found) == sorted(f"k{n}" for n in range(60))
    assert all(isinstance(answer, Answer) for answer in found)


def test_an_outage_costs_no_request_its_attempts():
    """100 s without server; every request has but four attempts."""
    server = Played(lambda seconds, _: passing() if 20 <= seconds < 120 else None)
    found = run(all_of(retrying(pool(server), attempts=4, backoff=BACKOFF), 500))
    assert all(isinstance(answer, Answer) for answer in found)
    during = [start for start in server.began if 22 <= start < 120]
    assert len(during) < 12, "one at a time, at growing distances"


def test_a_server_that_comes_back_gets_more_with_every_answer():
    server = Played(lambda seconds, _: passing() if seconds < 3 else None)
    run(all_of(retrying(pool(server), attempts=50, backoff=BACKOFF), 200))
    back = min(start for start in server.began if start >= 3)
    together = [sum(start == moment for start in server.began) for moment in sorted({*server.began}) if moment >= back]
    assert together[0] == 1
    assert together[1] == 2
    assert max(together) > 8


def test_a_dead_server_is_asked_rarely_and_lives_again():
    dead, alive = Played(lambda seconds, _: passing() if seconds < 300 else None), Played()
    ask = retrying(pool(dead, alive, concurrency=8), attempts=50, backoff=BACKOFF)
    found = run(all_of(ask, 8_000, 16))
    assert len(found) == 8_000
    assert sum(start < 300 for start in dead.began) < 8 + STRIKES + 8
    assert sum(start > 370 for start in dead.began) > 1000


@profile(max_examples=40)
@given(st.floats(0.1, 600))
def test_while_a_server_asks_us_to_wait_it_is_not_asked(wait):
    server = Played(lambda _, number: passing(wait) if number == 30 else None)
    found = run(all_of(retrying(pool(server), attempts=9, backoff=BACKOFF), 100))
    assert all(isinstance(answer, Answer) for answer in found)
    told = server.began[30] + server.latency
    assert not [start for start in server.began if told < start < told + wait - 1e-6]


def test_after_too_many_requests_there_are_fewer_at_once():
    server = Played(lambda _, number: passing(5.0) if number == 40 else None)
    run(all_of(retrying(pool(server), attempts=9, backoff=BACKOFF), 100))
    told = server.began[40] + server.latency
    back = min(start for start in server.began if start >= told + 5)
    assert sum(start == back for start in server.began) <= 9


def test_many_that_are_told_to_wait_at_once_halve_the_room_once():
    server = Played(lambda _, number: passing(5.0) if 32 <= number < 48 else None)
    run(all_of(retrying(pool(server), attempts=9, backoff=Backoff(0.0, 0.0)), 100))
    back = min(start for start in server.began if start > 2)
    assert back == pytest.approx(8)
    assert sum(start == back for start in server.began) == 8


@pytest.mark.parametrize("wait", [None, 10.0, 3600.0])
def test_patience_ends_when_all_servers_fail_for_so_long(wait):
    servers = Played(lambda _seconds, _number: passing(wait)), Played(lambda _seconds, _number: passing(wait))
    with pytest.raises(FuserlError, match="bad luck") as caught:
        run(all_of(retrying(pool(*servers, patience=600), attempts=10_000, backoff=BACKOFF), 100))
    assert "engine.patience" in caught.value.hint
    assert caught.value.where == "`engine.pool`"
    assert max(server.began[-1] for server in servers) < 660


def test_an_idle_hour_is_no_outage():
    """Neither before the first request nor between two; nor is a wish to wait that follows an answer."""
    server = Played(
        lambda _, number: passing() if number % 7 in (1, 2, 3) else passing(30.0) if number % 7 == 5 else None
    )

    async def body() -> None:
        ask = retrying(pool(server, patience=120), attempts=9, backoff=BACKOFF)
        for n in range(10):
            await asyncio.sleep(3600)
            assert isinstance(await ask(request(n)), Answer)

    run(body())


def test_a_request_that_is_cancelled_makes_room():
    async def body() -> None:
        server = Played(latency=1e6)
        ask = pool(server, concurrency=1)
        stuck = asyncio.ensure_future(ask(request(0)))
        await asyncio.sleep(1)
        server.latency = 1.0
        waiting = asyncio.ensure_future(ask(request(1)))
        await asyncio.sleep(1)
        stuck.cancel()
        assert isinstance(await waiting, Answer)

    run(body())

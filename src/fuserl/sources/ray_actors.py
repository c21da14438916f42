"""Many models at once: actors of Ray, on the GPUs of one machine or of many, that share the requests for one.

Requests go out in blocks and results come back as they are made. An actor that dies is replaced, and what it had not
answered is asked again. Why these are plain actors and no data set of Ray Data: docs/decisions/0014. Sources' engines
work in them (`engine=ray`), and reward models (`fuserl.rewards.classifier_ray`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Engine, Failure, Request
from fuserl.sources.requirements import needed, require_counts
from fuserl.sources.source import Source

PAUSE = 0.5  # seconds for which an actor collects answers before it sends them
FAREWELL = 30.0  # seconds that actors have to close their engines


@runtime_checkable
class Keyed(Protocol):
    """What is asked, and what comes back of it: both carry one key."""

    @property
    def key(self) -> str:
        """Not twice among what is under way."""
        ...


class Worker:
    """What runs in an actor: an engine of its own."""

    def start(self, engine: Callable[[], Any]) -> None:
        """Load the model."""
        self.engine = engine()

    def tell(self, name: str) -> Any:
        """What a method of the engine without arguments says."""
        return getattr(self.engine, name)()

    def answers(self, block: list[Keyed]) -> Iterator[list[Keyed]]:
        """Results of these requests, some at a time."""
        collected, sent = [], time.monotonic()
        for result in self.engine.answer(block):
            collected.append(result)
            if time.monotonic() - sent > PAUSE:
                yield collected
                collected, sent = [], time.monotonic()
        yield collected

    def close(self) -> None:
        """Give back what the engine holds."""
        self.engine.close()


class Actors:
    """Models in actors.

    Args:
        make: what each actor runs: it has `answer(requests)` and `close()`, as `protocol.Engine`.
        where: place of these settings in the configuration, for messages.
        actors: how many.
        gpus: of each actor; as many as its engine uses.
        cpus: of each actor.
        block: requests given to an actor at a time. Its engine runs dry at a block's end, and the last blocks keep some
            actors idle: large, yet a small part of an actor's share.
        restarts: actors replaced at most; one that dies again and again has a reason.
        address: of a running Ray cluster; null: this machine, or the cluster that RAY_ADDRESS names.

    Raises:
        FuserlError: Ray is not installed, cannot be reached, or has not the GPUs asked for.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        where: str,
        actors: int,
        gpus: float,
        cpus: float,
        block: int,
        restarts: int,
        address: str | None,
    ) -> None:
        require_counts(actors=actors, block=block)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = needed("ray", "ray")
        self.make, self.where, self.block, self.restarts = make, where, block, restarts
        self.remote = self.ray.remote(num_gpus=gpus, num_cpus=cpus)(Worker)
        self.ours = not self.ray.is_initialized()
        if self.ours:
            self._connect(address)
        self._require(address, {"GPU": actors * gpus, "CPU": actors * cpus})
        self.free: list[Any] = []
        self.starting: dict[Any, Any] = {}  # what to wait for -> the actor
        self.lacking = actors  # actors to be started

    def results(self, requests: Iterable[Keyed]) -> Iterator[Any]:
        """Of all actors as they come, a `Failure` where a model said nothing; requests are drawn a block at a time."""
        self._start()
        stream, again, under_way = iter(requests), deque[list[Keyed]](), {}
        try:
            while True:
                while self.free and (block := again.popleft() if again else list(islice(stream, self.block))):
                    worker = self.free.pop()
                    under_way[worker.answers.remote(block)] = worker, {request.key: request for request in block}
                if self.free and not under_way:
                    return
                (ready, *_), _ = self.ray.wait([*self.starting, *under_way], num_returns=1)
                if ready in self.starting:
                    self._has_started(ready)
                else:
                    yield from self._received(ready, under_way, again)
        finally:  # left early: what is still under way is nobody's
            for worker, _ in under_way.values():
                self._lose(worker)

    def tell(self, name: str) -> Any:
        """What a method of the model without arguments says, on the first actor that is there."""
        self._start()
        while not self.free:
            (ready, *_), _ = self.ray.wait([*self.starting], num_returns=1)
            self._has_started(ready)
        return self.ray.get(self.free[0].tell.remote(name))

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        if farewells := [worker.close.remote() for worker in self.free]:
            self.ray.wait(farewells, num_returns=len(farewells), timeout=FAREWELL)
        for worker in (*self.free, *self.starting.values()):
            self.ray.kill(worker)
        self.free, self.starting = [], {}
        self._leave()

    def _leave(self) -> None:
        if self.ours:
            self.ray.shutdown()

    def _start(self) -> None:
        for _ in range(self.lacking):
            worker = self.remote.remote()
            self.starting[worker.start.remote(self.make)] = worker
        self.lacking = 0

    def _has_started(self, ready: Any) -> None:
        worker = self.starting.pop(ready)
        try:
            self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            self._replace(worker, error)
        else:
            self.free.append(worker)

    def _received(
        self, ready: Any, under_way: dict[Any, tuple[Any, dict[str, Keyed]]], again: deque[list[Keyed]]
    ) -> Iterator[Keyed]:
        """What an actor has sent. At its block's end it is free; where it died, the rest of the block is asked again."""
        worker, open_requests = under_way[ready]
        try:
            results = self.ray.get(next(ready))
        except StopIteration:
            del under_way[ready]
            self.free.append(worker)
            results = [Failure(key, "the engine said nothing", passing=True) for key in open_requests]
        except self.ray.exceptions.RayError as error:
            del under_way[ready]
            again.append(list(open_requests.values()))
            self._replace(worker, error)
            results = []
        for result in results:
            if open_requests.pop(result.key, None):
                yield result

    def _replace(self, worker: Any, error: Exception) -> None:
        """Another actor for one that died; an error of its engine would only come again.

        Raises:
            FuserlError: it was an error, or too many have died.
        """
        self._lose(worker)
        exceptions = self.ray.exceptions
        if isinstance(error, exceptions.RayTaskError) and not isinstance(error, exceptions.RayActorError):
            cause = error.cause
            if isinstance(cause, FuserlError):
                raise cause from error
            raise self._told(f"an actor's engine failed ({type(cause).__name__}: {_first_line(cause)})") from error
        if not self.restarts:
            raise self._told(f"actors die again and again ({_first_line(error)})") from error
        self.restarts -= 1
        self._start()

    def _lose(self, worker: Any) -> None:
        self.ray.kill(worker)
        self.lacking += 1

    def _connect(self, address: str | None) -> None:
        local = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FuserlError(
                f"Ray cannot be reached ({_first_line(error)})",
                where=f"`{self.where}.address`",
                hint="null starts it on this machine; `auto` finds a cluster that runs here; else give its address",
            ) from error

    def _require(self, address: str | None, wanted: dict[str, float]) -> None:
        """On this machine alone: a cluster may grow."""
        if address or os.environ.get("RAY_ADDRESS"):
            return
        there = self.ray.cluster_resources()
        for kind, number in wanted.items():
            if number > there.get(kind, 0):
                self._leave()
                raise FuserlError(
                    f"the actors want {number:g} {kind}s, this machine has {there.get(kind, 0):g}",
                    where=f"`{self.where}.{kind.lower()}s`",
                    hint=f"fewer `{self.where}.actors`; `{self.where}.gpus=0` on processors; `{self.where}.address` of a "
                    "larger cluster",
                )

    def _told(self, what: str) -> FuserlError:
        return FuserlError(
            what,
            where=f"`{self.where}=ray`",
            hint="run the same command again; what was done is kept, and not done twice",
        )


class RayEngine:
    """A source's engines in actors: `engine=ray`.

    Args:
        engine: what each actor runs, called with the source.
        settings: of `Actors`.

    Raises:
        FuserlError: as `Actors`.
    """

    def __init__(self, source: Source, *, engine: Callable[[Source], Engine], **settings: Any) -> None:
        self.actors = Actors(partial(engine, source), where="engine", **settings)

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """Answers of all actors as they come; requests are drawn a block at a time."""
        return self.actors.results(requests)

    def close(self) -> None:
        """End the actors."""
        self.actors.close()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

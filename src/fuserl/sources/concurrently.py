"""An engine out of an `Ask`: many requests under way at once, in an event loop with a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any

from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.retrying import Ask

LEAVING = 10.0  # seconds that requests get to end when they are cancelled


class Concurrently:
    """Answers come as they are ready; requests are drawn in the thread of who reads the answers, one for each answer
    read, so a slow reader slows everything and nothing piles up.

    Who stops reading cancels what is under way. An error of `ask`, or of the iterable of requests, is raised once all
    answers that are there, or were under way when drawing failed, have been handed over: they have been paid for.

    Args:
        ask: an answer or a failure for a request; an exception of it ends the whole.
        concurrency: requests under way at once, answers not read yet counted.
        close: gives back what `ask` holds, in the event loop.
    """

    def __init__(self, ask: Ask, *, concurrency: int, close: Callable[[], Awaitable[None]]) -> None:
        self._ask, self._concurrency, self._close = ask, concurrency, close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """See `Engine`."""
        under_way: set[Future[Answer | Failure]] = set()
        ready: SimpleQueue[Future[Answer | Failure]] = SimpleQueue()
        source, error = iter(requests), None
        try:
            while True:
                while error is None and len(under_way) < self._concurrency:
                    try:
                        request = next(source)
                    except StopIteration:
                        break
                    except Exception as failed:
                        error = failed
                        break
                    future = self._submit(self._one(request))
                    under_way.add(future)
                    future.add_done_callback(ready.put)
                if not under_way:
                    break
                future = ready.get()
                under_way.discard(future)
                try:
                    result = future.result()
                except CancelledError:
                    continue
                except Exception as failed:
                    error = error or failed
                    self._cancel(under_way)
                    continue
                yield result
            if error is not None:
                raise error
        finally:
            self._cancel(under_way)

    def close(self) -> None:
        """Cancel what is under way and end the loop and its thread."""
        if self._loop is None or self._thread is None:
            return
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        asyncio.run_coroutine_threadsafe(self._leave(), loop).result(LEAVING * 2)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def _one(self, request: Request) -> Answer | Failure:
        return await self._ask(request)

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=LEAVING)
        await self._close()
        await asyncio.get_running_loop().shutdown_default_executor()

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @staticmethod
    def _cancel(under_way: Iterable[Future[Any]]) -> None:
        for future in under_way:
            future.cancel()

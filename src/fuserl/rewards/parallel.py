"""Work that waits for other processes, done by threads: lazily, in any order, never more in hand than asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from fuserl.errors import FuserlError

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_parallel(work: Callable[[Given], Made], items: Iterable[Given], workers: int) -> Iterator[Made]:
    """`work(item)` for every item, as they come; items are drawn as hands are free, two a worker at most.

    What `work` raises is raised here, once what has begun is done; nothing more is drawn or begun then.
    """
    pool = ThreadPoolExecutor(workers)
    held: set[Future[Made]] = set()
    try:
        for item in items:
            held.add(pool.submit(work, item))
            if len(held) >= 2 * workers:
                done, held = wait(held, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while held:
            done, held = wait(held, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def number_of_workers(asked: int | str, where: str) -> int:
    """`auto` is one a core that this process may use.

    Raises:
        FuserlError: it is no positive number.
    """
    if asked == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise FuserlError(f"{asked!r} is no number of workers", where=where, hint="give 1 or more, or `auto`")
    return asked

"""A bar for work that takes long: how much is done, how fast, how long it still takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PATIENCE = 2.0  # seconds before a bar appears


class Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """Of the last moments."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def bar(what: str, total: Callable[[], int | None], *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A function to be told how much is done. The bar shows on terminals, once over all ranks, after two seconds.

    Args:
        total: asked when the bar appears; None where nobody knows.
    """
    console = Console(stderr=True)
    show = show and console.is_terminal and os.environ.get("LOCAL_RANK", "0") == "0"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    progress, started = Progress(*columns, console=console, transient=True), time.monotonic()

    def told(done: int) -> None:
        if not show or time.monotonic() - started < PATIENCE:
            return
        if not progress.tasks:
            progress.add_task(what, total=total(), completed=done)
            progress.start()
        progress.update(progress.tasks[0].id, completed=done)

    try:
        yield told
    finally:
        if progress.tasks:
            progress.stop()

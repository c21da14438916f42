"""What a verb tells the person at the terminal: single lines, and a bar for work that takes long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fuserl.errors import Stopped

PATIENCE = 2.0  # seconds before a bar appears
WIDE = 120  # signs of a table's line where no terminal says how many it has


class Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """Of the last moments."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


def say(text: str) -> None:
    """One line for the person at the terminal, once over all ranks."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def end_in_order() -> None:
    """From now on SIGTERM raises `Stopped`: what runs beside this process is ended too, and the person is told how to go on."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, "what was done is kept")


@contextmanager
def bar(what: str, total: Callable[[], int | None], *, show: bool = True) -> Iterator[Callable[..., None]]:
    """A function to be told how much is done. The bar shows on terminals, once over all ranks, after two seconds.

    Args:
        total: asked when the bar appears; None where nobody knows.

    The function takes how much is done, and a text to show beside the bar (tokens a second, cost).
    """
    console = Console(stderr=True)
    show = show and console.is_terminal and os.environ.get("LOCAL_RANK", "0") == "0"
    told_beside = TextColumn("{task.fields[beside]}", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        told_beside,
    )
    progress, started = Progress(*columns, console=console, transient=True), time.monotonic()

    def told(done: int, beside: str = "") -> None:
        """Shown only once the work has taken a while."""
        if not show or time.monotonic() - started < PATIENCE:
            return
        if not progress.tasks:
            progress.add_task(what, total=total(), completed=done, beside=beside)
            progress.start()
        progress.update(progress.tasks[0].id, completed=done, beside=beside)

    try:
        yield told
    finally:
        if progress.tasks:
            progress.stop()


def say_table(table: Table) -> None:
    """A table for the person at the terminal, once over all ranks."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        console = Console(stderr=True, highlight=False)
        (console if console.is_terminal else Console(stderr=True, highlight=False, width=WIDE)).print(table)

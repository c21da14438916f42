"""Chat templates rendered with transformers' own Jinja, the clock pinned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from fuserl.errors import FuserlError


def render(tokenizer: Any, chat_template: str, date_string: str, messages: list[dict[str, str]], **kwargs: Any) -> str:
    """Apply a chat template with the date pinned, for templates that print one by either way.

    `apply_chat_template` turns every argument into plain data, a function too, so the compiled template is used itself.

    Raises:
        FuserlError: the template refuses the conversation (a system turn, say), or needs more than a conversation.
    """
    try:
        return _compile_jinja_template(chat_template).render(
            messages=messages,
            tools=None,
            documents=None,
            date_string=date_string,
            strftime_now=pinned_clock(date_string),
            **tokenizer.special_tokens_map,
            **kwargs,
        )
    except Exception as error:  # a template is somebody's program and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise FuserlError(
            f"the chat template refuses this conversation: {error}",
            where=f"turns: {roles}",
            hint="mend the conversation (some templates allow no system turn, some need tools), "
            "or give another `target.chat_template`",
        ) from error


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Break off what takes longer: Jinja's sandbox bounds a loop, not loops inside loops. Only the main thread can be.

    Raises:
        TimeoutError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it has not ended after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pinned_clock(date_string: str) -> Callable[[str], str]:
    """What `strftime_now` gives: that day in the wanted form, or the text itself where it is no date.

    >>> pinned_clock("26 Jul 2024")("%Y-%m-%d"), pinned_clock("a summer's day")("%Y-%m-%d")
    ('2024-07-26', "a summer's day")
    """
    try:
        return datetime.strptime(date_string, "%d %b %Y").strftime
    except ValueError:
        return lambda form: date_string

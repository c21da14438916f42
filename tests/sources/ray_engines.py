"""Engines for actors, which import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.source import Source


class Echo:
    """Answers with the prompt and the seed; what was answered, and by whom, stands in a folder."""

    def __init__(self, source: Source, *, folder: str, dies_at: str | None = None, fails: bool = False) -> None:
        if fails:
            raise FuserlError("this model cannot be loaded")
        self.folder, self.dies_at = Path(folder), dies_at
        (self.folder / f"started-{os.getpid()}").touch()

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """Dies once at a request's key, or always where the key is `always`."""
        for request in requests:
            once = self.folder / "died"
            if request.key == self.dies_at and (request.key == "always" or not once.exists()):
                once.touch()
                time.sleep(0.8)  # what was answered before is sent
                os.kill(os.getpid(), signal.SIGKILL)
            if request.key == "odd":
                raise ValueError("an odd request\nindeed")
            if request.key == "silent":
                continue
            if request.key.startswith("slow"):
                time.sleep(0.6)
            with (self.folder / "asked").open("a") as file:
                file.write(f"{request.key} {os.getpid()}\n")
            text = f"{request.messages[-1].content} {request.seed}"
            yield Answer(request.key, text, "stop", 1, 2, {"seed": request.seed})

    def close(self) -> None:
        """Leave a note."""
        (self.folder / f"closed-{os.getpid()}").touch()

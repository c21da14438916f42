"""Processes of our own that answer lines; one that hangs or dies is replaced, and the line it had stays unanswered."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

PATIENCE = 5.0  # seconds for a worker to end when nothing more comes
TIMERS = (-signal.SIGPROF, -signal.SIGALRM)  # exit codes of a worker whose own timer ended it


class Unanswered(Exception):
    """A worker died over a line."""


class NotStarted(Exception):
    """A worker did not begin: a library is missing, or there is no memory for it."""


class Worker:
    """One process; started when it is first asked."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.process: Any = None

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one back.

        Raises:
            Unanswered: it died; the next line finds a new one.
            NotStarted: there is none, and why.
        """
        process = self.process = self.process or self._started()
        try:
            process.stdin.write(json.dumps(dict(question)).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if line.endswith(b"\n"):
            return json.loads(line)
        self.stop()
        raise Unanswered("timeout" if process.returncode in TIMERS else f"died with code {process.returncode}")

    def stop(self) -> None:
        """End it; one that has ended by itself is tidied away."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(OSError):  # a line may wait in the buffer that nobody will read
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()

    def _started(self) -> Any:
        pipe = subprocess.PIPE
        process: Any = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe)
        if process.stdout.readline() == b'{"ready": true}\n':
            return process
        said = process.stderr.read().decode(errors="replace").strip()
        self.process = process
        self.stop()
        raise NotStarted(said.splitlines()[-1] if said else "it said nothing")


class Workers:
    """As many as asked for; each question goes to one that is free."""

    def __init__(self, module: str, arguments: Sequence[object], number: int) -> None:
        command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        self.all = [Worker(command) for _ in range(number)]
        self.free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.all:
            self.free.put(worker)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """See `Worker.ask`; waits until one is free."""
        worker = self.free.get()
        try:
            return worker.ask(question)
        finally:
            self.free.put(worker)

    def close(self) -> None:
        """End them all."""
        for worker in self.all:
            worker.stop()

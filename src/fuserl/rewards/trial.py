"""One program on trial: processes are started, watched and ended here; what they say is weighed, never trusted."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from fuserl.rewards.inside.wire import Kept, encode
from fuserl.rewards.sandbox import Cell, Limits, Running

GRACE = 0.5  # seconds in which a process that has closed its files should be gone
LOOK = 0.05  # seconds between looks at how many files there are
FILES = 2000  # in a program's folder; an empty one takes about 2 kB of the kernel's memory
VERDICTS = ("right", "wrong", "unknown", "trouble")
CLOSED, LATE = "", "timeout"  # why a process was stopped: it was not; it took too long, also of CPU time
OUT_OF_CPU = (
    -signal.SIGXCPU,
    128 + signal.SIGXCPU,
)  # exit codes of a process that used up its CPU time, and bubblewrap's


@dataclass(frozen=True)
class Finding:
    """What a trial showed."""

    verdict: str  # right, wrong or unknown; `trouble`: the sandbox failed, and another time it may not
    why: str = ""  # briefly


@dataclass(frozen=True)
class Calls:
    """Unit tests in Python, which call what the program defines."""

    tests: str  # assertions, or a function `check(candidate)`
    setup: str = ""  # what the tests may use beside the program: imports, helpers of the task
    entry_point: str = ""  # the name that must be the program's, though `setup` or Python has it too
    check: str = ""  # the function of `tests` that is called with the entry point; empty: the tests run by themselves


@dataclass(frozen=True)
class Case:
    """What a program reads, and what it must print."""

    reads: str
    prints: str


@dataclass(frozen=True)
class Program:
    """A program and the imports that are done before it begins."""

    text: str
    imports: str = ""

    def job(self, limits: Limits) -> dict[str, Any]:
        """What its process is told."""
        return {"program": self.text, "imports": self.imports, "limits": limits.inside()}


def by_calls(program: Program, calls: Calls, cell: Cell, limits: Limits) -> Finding:
    """Run unit tests in one process against the program in another."""
    deadline = time.monotonic() + limits.wall_seconds
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            guest = stack.enter_context(_running(cell, "guest", [], program.job(limits), limits, stdin=theirs))
            work = {**vars(calls), "limits": limits.inside()}
            tests = _running(cell, "examiner", [ours.fileno()], work, limits, stdout=subprocess.PIPE)
            examiner = stack.enter_context(tests)
        said, state = _read(examiner, 1 << 16, deadline, guest)
        code = _exit_code(guest) if state == CLOSED else None
    lines = said.split(b"\n")
    if state in (CLOSED, LATE) and lines[0] != b"ready":
        return Finding("trouble", "the process of the tests did not start")
    if state != CLOSED or code in OUT_OF_CPU:
        return Finding("wrong", state or LATE)
    return _verdict(lines) or Finding("wrong" if b"answered" in lines else "unknown", "the tests were stopped")


def by_cases(program: Program, cases: Sequence[Case], cell: Cell, limits: Limits) -> Finding:
    """Run the program on every case, each time anew; the expected output never comes near it."""
    for number, case in enumerate(cases, 1):
        found = _one_case(program, case, cell, limits)
        if found.verdict != "right":
            return Finding(found.verdict, f"case {number} of {len(cases)}: {found.why}")
    return Finding("right") if cases else Finding("unknown", "there are no cases")


def _one_case(program: Program, case: Case, cell: Cell, limits: Limits) -> Finding:
    deadline = time.monotonic() + limits.wall_seconds
    reading, writing = os.pipe()
    with ExitStack() as stack, open(reading, "rb", buffering=0) as began:
        with open(writing, "wb", buffering=0), _file(case.reads.encode()) as reads:
            started = _running(
                cell, "program", [writing], program.job(limits), limits, stdin=reads, stdout=subprocess.PIPE
            )
            running = stack.enter_context(started)
        said, state = _read(running, limits.output_mb << 20, deadline, running)
        code = _exit_code(running) if state == CLOSED else None
        ready = bool(select.select([began], [], [], 0)[0]) and began.read(5) == b"ready"
    if not ready:
        return Finding("trouble", "the program's process did not start")
    if state != CLOSED or code in OUT_OF_CPU:
        return Finding("wrong", state or LATE)
    if code != 0:
        return Finding("wrong", "does not end" if code is None else f"ended with code {code}")
    same = _lines(said.decode(errors="replace")) == _lines(case.prints)
    return Finding("right") if same else Finding("wrong", "prints something else")


def _lines(text: str) -> list[str]:
    """Lines without what nobody sees: spaces at their ends, empty lines at the end of all."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


@contextmanager
def _running(
    cell: Cell, module: str, numbers: Sequence[int], job: dict[str, Any], limits: Limits, **handles: Any
) -> Iterator[Running]:
    """A process with its job in an open file; killed at the end, with all that is in its cell."""
    with _file(encode(job, Kept())) as file:
        running = cell.start(module, [file.fileno(), *numbers], limits, **handles)
    try:
        yield running
    finally:
        running.end()


@contextmanager
def _file(content: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


def _read(said_by: Running, most: int, deadline: float, watched: Running) -> tuple[bytes, str]:
    """What one process says until it closes, or until one of them must be stopped; and why that was."""
    stream: Any = said_by.process.stdout
    parts, size = [], 0
    while size <= most:
        if watched.files() > FILES:
            return b"".join(parts), f"makes more than {FILES} files"
        left = deadline - time.monotonic()
        if left <= 0:
            return b"".join(parts), LATE
        if not select.select([stream], [], [], min(left, LOOK))[0]:
            continue
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            return b"".join(parts), CLOSED
        parts.append(part)
        size += len(part)
    return b"".join(parts), f"prints more than {most >> 20} MB"


def _exit_code(running: Running) -> int | None:
    """None for a process that has closed its files and does not end."""
    try:
        return running.process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None


def _verdict(lines: list[bytes]) -> Finding | None:
    """The examiner's last word, if it came to it."""
    said = next((line.decode(errors="replace") for line in reversed(lines) if line.startswith(b"=")), "")
    verdict, _, why = said.removeprefix("=").partition(" ")
    return Finding(verdict, why) if verdict in VERDICTS else None

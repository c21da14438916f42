"""The first steps of every process in the sandbox: read the job, take the limits, let go of what the program must not hold."""

from __future__ import annotations

import os
import resource

from fuserl.rewards.inside.wire import Kept, decode

MIB = 1 << 20
OPEN_FILES = 64


def job(descriptor: int) -> dict:
    """Read the job from an open file, which is closed, and set this process's limits for good."""
    parts = []
    os.lseek(descriptor, 0, os.SEEK_SET)
    while part := os.read(descriptor, MIB):
        parts.append(part)
    os.close(descriptor)
    read = decode(b"".join(parts), Kept())
    assert isinstance(read, dict)
    limit(**read["limits"])
    return read


def limit(*, cpu_seconds: int, memory_mb: int, scratch_mb: int) -> None:
    """Limits that can never be raised again. At that of CPU time comes SIGXCPU, a second later what cannot be caught."""
    for what, soft, most in (
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_AS, memory_mb * MIB, memory_mb * MIB),
        (resource.RLIMIT_FSIZE, scratch_mb * MIB, scratch_mb * MIB),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (min(soft, most), most))


def away(descriptor: int) -> int:
    """Move an open file out of the way of the standard ones; nothing can be read where it was."""
    moved = os.dup(descriptor)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return moved

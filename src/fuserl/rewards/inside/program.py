"""Runs a program as a script: standard input and output are its own, what it should print is known elsewhere."""

from __future__ import annotations

import os

from fuserl.rewards.inside import start
from fuserl.rewards.inside.guest import prepared, run


def main(descriptor: int, ready: int) -> None:
    """The job lies in the file `descriptor`; `ready` is told that the program begins."""
    work = start.job(descriptor)
    module = prepared(work, "__main__")
    os.write(ready, b"ready")
    os.close(ready)
    run(work, module)

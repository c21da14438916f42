"""A process that has everything imported and runs verbs in children of its own, so that a test can kill many quickly.

Commands come as JSON lines on standard input: `[verb, [override, ...]]`; instead of a verb, a module with a `main`. It answers with the child's number when it
starts, and with its status when it has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: whose parent is killed becomes the child of this process
TOLD = 3  # exit code of a verb that ended with a FuserlError


class Nursery:
    """The process, seen from a test."""

    def __init__(self, folder: Path, *imports: str, paths: Sequence[Path] = ()) -> None:
        """`paths`: folders that `imports` are looked for in, too."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        self.errors = (folder / "stderr").open("w")
        self.process = subprocess.Popen(
            [sys.executable, __file__, *imports],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self._line()

    def run(
        self,
        verb: str,
        overrides: list[str],
        *,
        kill_after: float | None = None,
        kill_when: Callable[[], bool] | None = None,
        within: float = 120.0,
    ) -> bool:
        """Whether the verb ended by itself, well; else it was killed after so many seconds, or when something was seen.

        Args:
            kill_when: is asked every few milliseconds, at most `within` seconds long, while the verb runs.

        Raises:
            AssertionError: it ended with an error.
        """
        child = self.start(verb, overrides)
        deadline = time.monotonic() + within
        while kill_when and not kill_when() and not ended(child) and time.monotonic() < deadline:
            time.sleep(0.005)
        if kill_after is not None:
            time.sleep(kill_after)
        if kill_when or kill_after is not None:
            os.kill(child, 9)  # still there, or waiting for its parent to look
        status = self.finish()
        assert status in (0, 9), self.said()
        return status == 0

    def start(self, verb: str, overrides: list[str]) -> int:
        """The number of the child that runs the verb."""
        self._tell(json.dumps([verb, overrides]))
        return int(self._line())

    def finish(self) -> int:
        """Wait for the child; its status, as the system gives it."""
        self._tell("")
        return int(self._line())

    def said(self) -> str:
        """All that the children have told."""
        return Path(self.errors.name).read_text()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


def ended(process: int) -> bool:
    """It is gone, or its parent has not looked yet, so that its number is its own."""
    return _state(process)[0] in "ZX"


def descendants(process: int) -> list[int]:
    """Living processes that come from this one, the oldest first."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    parents = {number: int(_state(number)[1]) for number in numbers if not ended(number)}
    found = [process]
    for one in found:
        found += sorted(number for number, parent in parents.items() if parent == one and number not in found)
    return found[1:]


def _state(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def serve() -> None:
    """Import what is named, then run what is asked, one after the other."""
    for name in ("fuserl.cli", *sys.argv[1:]):
        import_module(name)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(child, flush=True)
        sys.stdin.readline()  # the test has killed the child, or will not: only now may its number become another's
        status = os.waitpid(child, 0)[1]
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # what killed children have left, and has ended
                pass
        print(status, flush=True)


def _run(verb: str, overrides: list[str]) -> None:
    os.dup2(2, 1)  # standard output is for the test, and so is input
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        if "." in verb:
            sys.argv = [verb, *overrides]
            import_module(verb).main()
        else:
            sys.modules["fuserl.cli"].run_verb(verb, overrides)
        os._exit(0)
    except BaseException as error:
        traceback.print_exc()
        os._exit(TOLD if isinstance(error, sys.modules["fuserl.errors"].FuserlError) else 1)


if __name__ == "__main__":
    serve()

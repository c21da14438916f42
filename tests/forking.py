"""A process that has everything imported and runs verbs in children of its own, so that a test can kill many quickly.

Commands come as JSON lines on standard input: `[verb, [override, ...]]`; instead of a verb, a module with a `main`. It answers with the child's number when it
starts, and with its status when it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path


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
        assert self.process.stdin
        self.process.stdin.write(json.dumps([verb, overrides]) + "\n")
        self.process.stdin.flush()
        child = int(self._line())
        deadline = time.monotonic() + within
        while kill_when and not kill_when() and not _ended(child) and time.monotonic() < deadline:
            time.sleep(0.005)
        if kill_after is not None:
            time.sleep(kill_after)
        if kill_when or kill_after is not None:
            os.kill(child, 9)  # still there, or waiting for its parent to look
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        status = int(self._line())
        assert status in (0, 9), Path(self.errors.name).read_text()
        return status == 0

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


def _ended(child: int) -> bool:
    """Its parent has not looked yet, so its number is its own."""
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def serve() -> None:
    """Import what is named, then run what is asked, one after the other."""
    for name in ("fuserl.cli", *sys.argv[1:]):
        import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(child, flush=True)
        sys.stdin.readline()  # the test has killed the child, or will not: only now may its number become another's
        print(os.waitpid(child, 0)[1], flush=True)


def _run(verb: str, overrides: list[str]) -> None:
    os.dup2(2, 1)  # standard output is for the test
    try:
        if "." in verb:
            sys.argv = [verb, *overrides]
            import_module(verb).main()
        else:
            sys.modules["fuserl.cli"].run_verb(verb, overrides)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    serve()

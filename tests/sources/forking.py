"""A process that has everything imported and runs verbs in children of its own, so that a test can kill many quickly.

Commands come as JSON lines on standard input: `[verb, [override, ...]]`. It answers with the child's number when it
starts, and with its status when it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path


class Nursery:
    """The process, seen from a test."""

    def __init__(self, folder: Path, *imports: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
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

    def run(self, verb: str, overrides: list[str], *, kill_after: float | None = None) -> bool:
        """Whether the verb ended by itself, well; else it was killed after so many seconds.

        Raises:
            AssertionError: it ended with an error.
        """
        assert self.process.stdin
        self.process.stdin.write(json.dumps([verb, overrides]) + "\n")
        self.process.stdin.flush()
        child = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
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
    try:
        sys.modules["fuserl.cli"].run_verb(verb, overrides)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    serve()

"""One job in a process of its own: `python -m fuserl.sweeps.worker`, started by the launcher `processes`.

The job comes as one line of JSON on standard input. The end of that input means that the sweep is gone; then the job
goes too, and the next sweep continues it.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from fuserl.settings import compose
from fuserl.sweeps.job import run


def main() -> int:
    """Run the job; 1 where it failed, which its folder explains."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    try:
        run(told["verb"], compose(told["verb"], told["overrides"]), told["overrides"])
    except Exception:
        return 1
    return 0


def _end_with_the_sweep() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

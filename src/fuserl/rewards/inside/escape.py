"""Says whether the walls of a cell hold; run in every kind of cell before it is trusted."""

from __future__ import annotations

import os
import socket


def main(descriptor: int) -> None:
    """The file `descriptor` names a file of the world outside and a port at which somebody listens there."""
    file, port = os.read(descriptor, 4096).decode().split("\n")
    found = []
    for what, attempt in (
        ("a file outside can be read", lambda: open(file).close()),
        ("the root folder can be written", lambda: open("/written", "w").close()),
        ("a process can be started", lambda: os._exit(0) if os.fork() == 0 else None),
        ("there is a network", lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=1)),
        ("processes can be seen", lambda: os.listdir("/proc")),
    ):
        try:
            attempt()
            found.append(what)
        except OSError:
            pass
    if set(os.environ) - {"PYTHONHASHSEED", "LC_ALL", "HOME", "PATH", "PWD"}:
        found.append("the environment is seen")
    print("; ".join(found) or "walls hold", end="")

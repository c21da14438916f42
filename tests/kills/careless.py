"""Verbs for the harness's own tests: they forget, are left open, or fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """`careless HOW OUT`: what it leaves is two letters, written one after the other."""
    how, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(exist_ok=True)
    if how == "leaves a process":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10)"])
    done = out / "letters.txt"
    for letter in "ab":
        time.sleep(0.1)
        if how == "careful" and done.exists() and letter in done.read_text():
            continue
        with done.open("a") as file:
            file.write(letter)
    if how == "fails" and done.read_text() != "ab":
        raise ValueError("the power went")
    time.sleep(0.1)
    (out / "end").touch()

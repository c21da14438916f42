"""`make audit`: what is installed is what `constraints.txt` pins, all of what fuserl needs is pinned, and each licence is named.

It works without a network, so it knows nothing of vulnerabilities that were published since a version was pinned.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
OF_PYTHON = {"pip", "setuptools", "wheel", "fuserl"}  # of the environment, and ourselves
LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)$")


def key(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Name -> version, and the lines that pin nothing exactly."""
    found, loose = {}, []
    for line in (one.split("#")[0].strip() for one in text.splitlines()):
        if line and (match := LINE.match(line)):
            found[key(match[1])] = match[2]
        elif line:
            loose.append(line)
    return found, loose


def licence(one: Distribution) -> str:
    """What the package says of itself, shortly."""
    said = one.metadata.get("License-Expression") or one.metadata.get("License") or ""
    classes = [c.split(" :: ")[-1] for c in one.metadata.get_all("Classifier") or [] if c.startswith("License")]
    first = said.strip().splitlines()[0] if said.strip() else ""
    return first if first and len(first) < 60 else ", ".join(classes) or first[:60] or "not said"


def problems(installed: dict[str, str], pinned: dict[str, str], loose: list[str]) -> list[str]:
    """One sentence each; a version's local part, as in `2.13.0+cpu`, is the build and not the version.

    >>> problems({"a": "1.0+cpu", "b": "2"}, {"a": "1.0"}, ["c>=1"])
    ['`c>=1` pins no version', '`b` 2 is installed and not pinned']
    """
    said = [f"`{line}` pins no version" for line in loose]
    for name, version in sorted(installed.items()):
        if name not in pinned:
            said.append(f"`{name}` {version} is installed and not pinned")
        elif version.split("+")[0] != pinned[name].split("+")[0]:
            said.append(f"`{name}` {version} is installed, {pinned[name]} is pinned")
    return said


def main() -> int:
    """Print the table and what is wrong; the number of problems, at most 1."""
    there = {key(one.metadata["Name"]): one for one in distributions()}
    there = {name: one for name, one in there.items() if name not in OF_PYTHON}
    pinned, loose = pins(CONSTRAINTS.read_text(encoding="utf-8"))
    for name, one in sorted(there.items()):
        print(f"{name:<28}{one.version:<16}{licence(one)}")
    wrong = problems({name: one.version for name, one in there.items()}, pinned, loose)
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    print(f"{len(there)} packages, {len(wrong)} problems; published vulnerabilities are not looked up (no network)")
    return min(1, len(wrong))


if __name__ == "__main__":
    sys.exit(main())

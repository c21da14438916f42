"""The folder of `align`: fused stores, complete when its manifest says so, tied to settings and inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.manifest import write_text_atomically

HINT = "give another folder with `output=DIR`, or delete this one to start anew"
BEGUN = "begun.json"  # settings and inputs of the folder, from the moment something is written


class FusedFolder:
    """Where fused distributions come to stand."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.manifest = self.path / "manifest.json"

    def store(self, name: str) -> Path:
        """The folder of one fused signal, which one training run learns from."""
        return self.path / "fused" / name

    def finished(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
        """Whether these very distributions are here already. Nothing is written.

        Raises:
            FuserlError: the folder holds something else.
        """
        try:
            inside = {file.name for file in self.path.iterdir() if file.suffix != ".part"} - {".lock"}
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FuserlError(
                f"the output folder cannot be read: {error.strerror or error}", where=str(self.path), hint=HINT
            ) from error
        if not inside:
            return False
        try:
            begun = json.loads((self.path / BEGUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FuserlError(
                "the folder holds something that `fuserl align` did not make", where=str(self.path), hint=HINT
            ) from error
        for part, now in (("settings", decisive), ("inputs", inputs)):
            before, now = begun.get(part, {}), _plain(now)
            if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
                told = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:3])
                raise FuserlError(
                    f"this folder was begun with other {part} ({told[:300]})", where=str(self.path), hint=HINT
                )
        return self.manifest.exists()

    def begin(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """Say what the folder is for. Whoever begins it holds its lock."""
        content = json.dumps({"settings": decisive, "inputs": inputs}, default=str)
        write_text_atomically(self.path / BEGUN, content)

    def finish(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, then the manifest, which makes the folder complete."""
        write_text_atomically(self.path / "summary.json", json.dumps(summary, indent=1))
        content = {"verb": "align", "settings": decisive, "inputs": inputs}
        write_text_atomically(self.manifest, json.dumps(content, indent=1, default=str))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=str))

"""The folder of `align`: fused stores, complete when its manifest says so, tied to settings and inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.manifest import write_text_atomically

HINT = "give another folder with `output=DIR`, or delete this one to start anew"


class FusedFolder:
    """Where fused distributions come to stand."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.manifest = self.path / "manifest.json"

    def store(self, name: str) -> Path:
        """The folder of one fused signal, which one training run learns from."""
        return self.path / "fused" / name

    def finished(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
        """Whether these very distributions are here already.

        Raises:
            FuserlError: the folder holds something else, or cannot be made.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FuserlError(
                    f"the output folder cannot be made: {error.strerror or error}",
                    where=str(self.path),
                    hint="give another one with `output=DIR`",
                ) from error
            self._begin(decisive, inputs)
            return False
        try:
            begun = json.loads((self.path / "begun.json").read_text(encoding="utf-8"))
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

    def _begin(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        write_text_atomically(
            self.path / "begun.json", json.dumps({"settings": decisive, "inputs": inputs}, default=str)
        )

    def finish(self, decisive: Mapping[str, Any], inputs: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, then the manifest, which makes the folder complete."""
        write_text_atomically(self.path / "summary.json", json.dumps(summary, indent=1))
        content = {"verb": "align", "settings": decisive, "inputs": inputs}
        write_text_atomically(self.manifest, json.dumps(content, indent=1, default=str))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=str))

"""The folder of `select`: named by its settings, tied to what its inputs held, finished when `report.json` says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fuserl import settings
from fuserl.curation.gather import Input
from fuserl.errors import FuserlError
from fuserl.records.inputs import content_digest
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import plain

FREE = ("output",)  # settings that do not change what comes out
OURS = (".lock", "inputs.json")  # what may be there before `config.yaml`


class SelectFolder:
    """Paths of one selection and what may be done with them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config, self.inputs = self.path / "config.yaml", self.path / "inputs.json"
        self.report, self.page, self.dropped = (
            self.path / f"{n}" for n in ("report.json", "report.html", "dropped.jsonl")
        )
        self.work = self.path / "work"  # gone at the end

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time."""
        return locked(self.path)

    def open(self, config: Mapping[str, Any], inputs: Iterable[Input]) -> dict[str, str]:
        """Tie the folder to these settings and to what the inputs hold; call it under the lock.

        Returns:
            Input -> digest of its content.

        Raises:
            FuserlError: the folder holds another selection, or one of inputs that have changed since.
        """
        contents = {one.name: content_digest(one.path, one.split) for one in inputs}
        if self.config.exists():
            self._require_same_settings(config)
            self._require_same_inputs(contents)
        elif any(path.name not in OURS and path.suffix != ".part" for path in self.path.iterdir()):
            raise FuserlError(
                "the folder holds something that `fuserl select` did not make",
                where=str(self.path),
                hint="give another folder with `output=DIR`",
            )
        write_text_atomically(self.inputs, json.dumps(contents, indent=1))
        write_text_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        return contents

    def finished(self) -> bool:
        """Whether all is there."""
        return self.report.exists()

    def clear(self) -> None:
        """Take away what only unfinished selections need, theirs that were killed included."""
        shutil.rmtree(self.work, ignore_errors=True)
        for part in self.path.glob("*.part"):
            part.unlink(missing_ok=True)

    def _require_same_settings(self, config: Mapping[str, Any]) -> None:
        before = plain(OmegaConf.load(self.config))  # type: ignore[arg-type]
        if lines := settings.changes(before, config, FREE):
            raise FuserlError(
                f"this folder holds a selection with other settings ({lines})",
                where=str(self.path),
                hint="give another folder with `output=DIR`, or delete this one to start anew",
            )

    def _require_same_inputs(self, contents: Mapping[str, str]) -> None:
        before = json.loads(self.inputs.read_text(encoding="utf-8")) if self.inputs.exists() else contents
        changed = sorted(name for name in contents if before.get(name) != contents[name])
        if changed:
            raise FuserlError(
                f"the input `{changed[0]}` has changed since this folder was made from it",
                where=str(self.path),
                hint="give another folder with `output=DIR`, or delete this one to select from what is there now",
            )

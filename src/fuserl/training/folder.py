"""A run's folder: named by content, locked while in use, complete when `summary.json` says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.records.journal import locked
from fuserl.records.manifest import write_text_atomically
from fuserl.settings import FREE, plain


def digest(verb: str, config: Mapping[str, Any]) -> str:
    """The name of a run: see `settings.digest`."""
    return settings.digest(verb, config, FREE)


class RunFolder:
    """Paths of one run and what may be done with them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.summary = self.path / "config.yaml", self.path / "summary.json"
        self.metrics, self.samples = self.path / "metrics.csv", self.path / "samples.jsonl"
        self.test = self.path / "test.jsonl"
        self.checkpoints, self.model = self.path / "checkpoints", self.path / "model"

    def open(self, cfg: DictConfig) -> None:
        """Make the folder and write the resolved configuration.

        Raises:
            FuserlError: the folder cannot be written, or holds a run with other settings.
        """
        config = plain(cfg)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.config.exists():
                self._check_same(config)
            write_text_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(config)))
        except OSError as error:
            raise FuserlError(
                f"the output folder cannot be written: {error.strerror or error}",
                where=str(self.path),
                hint="give another one with `output=DIR`",
            ) from error

    def _check_same(self, config: Mapping[str, Any]) -> None:
        before = plain(OmegaConf.load(self.config))  # type: ignore[arg-type]
        if lines := settings.changes(before, config, FREE):
            raise FuserlError(
                f"this folder holds a run with other settings ({lines})",
                where=str(self.path),
                hint="give another folder with `output=DIR`, or delete this one to start anew",
            )

    def finished(self) -> dict[str, Any] | None:
        """The summary of a complete run, else None."""
        if not self.summary.exists():
            return None
        return json.loads(self.summary.read_text(encoding="utf-8"))

    def forget_samples_after(self, step: int) -> None:
        """Drop probe answers of steps that a resumed run repeats."""
        if self.samples.exists():
            lines = self.samples.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text_atomically(self.samples, "".join(kept))

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time: two jobs in one folder would destroy each other's checkpoints."""
        return locked(self.path)

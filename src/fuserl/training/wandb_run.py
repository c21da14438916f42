"""A run's window in W&B: one W&B run a folder, closed whatever happens; the record stays in the folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from fuserl.reporting.window import QUIET, mode, set_aside, without_secrets
from fuserl.terminal import say
from fuserl.training.logged import (
    COLUMNS,
    answers,
    final_numbers,
    inputs_of,
    name_of,
    origin,
    sweep_of,
    tags_of,
)
from fuserl.training.loggers import RunLogger


class WandbRun(RunLogger):
    """One W&B run, named after the folder, grouped by sweep; a resumed job continues it.

    Lightning's own logger writes into any run of this process that is still open and sets `WANDB_MODE` for all that
    follows, so this is ours.

    Args:
        save_dir: the run's folder.
        group: None takes the name of the sweep that the folder is a job of.
        tags: before those of objective, target and data.
        timeout: seconds to wait for the server at the start (then the run is kept offline) and at the end.
    """

    title = "W&B"

    def __init__(self, *, save_dir: str, project: str, group: str | None, tags: Sequence[str], timeout: float) -> None:
        super().__init__()
        self.folder = Path(save_dir).resolve()
        self.project, self.group, self.tags, self.timeout = project, group, list(tags), timeout
        self.id = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        self.run: Any = None
        self.step = 0

    @rank_zero_only
    def start(self, config: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]) -> None:
        """Open the run; offline, one that is resumed is written anew from its first row, so that it is synced once."""
        import wandb

        try:
            self.run = self._init(config, mode())
        except Exception as error:  # whatever W&B raises: the training does not depend on it
            if mode() != "online":
                raise
            say(f"W&B cannot be reached ({type(error).__name__}); the run is kept offline, `wandb sync` sends it later")
            wandb.teardown()  # its service still holds the id of the run that it did not open
            self.run = self._init(config, "offline")
        if self.run.offline:
            for step, row in sorted(before.items()):
                self.log_metrics({name: float(value) for name, value in row.items() if value not in (None, "")}, step)
        self._used("dataset", config["data"]["path"])
        self._used("model", config["target"]["path"])

    def _init(self, config: Mapping[str, Any], mode: str) -> Any:
        import wandb

        if mode in ("offline", "dryrun"):
            set_aside(self.folder, self.id)
        return wandb.init(
            project=self.project,
            group=self.group or sweep_of(self.folder),
            job_type="train",
            name=self.folder.name,
            id=self.id,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            mode=mode,  # type: ignore[arg-type]
            dir=str(self.folder),
            tags=tags_of(config, self.tags),
            config=without_secrets(config),
            settings=wandb.Settings(init_timeout=self.timeout, finish_timeout=self.timeout, **QUIET),
        )

    def _used(self, kind: str, path: str) -> None:
        """An input. W&B marks inputs only while it is online; an offline run carries them as artifacts of its own."""
        digests = inputs_of(self.folder) if kind == "dataset" else {}
        artifact = _artifact(kind, name_of(path), path, {**digests, "role": "input"})
        if self.run.offline:
            self.run.log_artifact(artifact)
        else:
            self.run.use_artifact(artifact)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """At the optimiser step, so that a row here is a row of `metrics.csv`."""
        self.step = max(self.step, int(step or 0))
        self.run.log(dict(metrics), step=int(step or 0))

    @rank_zero_only
    def close(self, *, success: bool) -> None:
        """Add answers, final numbers and the model's place; end the run with exit code 0 or 1."""
        if self.run is None:
            return
        try:
            self._log_results(success)
        finally:
            self.run.finish(exit_code=0 if success else 1)
            self.run = None

    def _log_results(self, success: bool) -> None:
        import wandb

        for name, rows in answers(self.folder).items():
            table = wandb.Table(columns=list(COLUMNS), data=rows, allow_mixed_types=True)
            self.run.log({name: table}, step=self.step)
        if success:
            self.run.summary.update(final_numbers(self.folder))
            self.run.log_artifact(_artifact("model", f"{self.folder.name}-model", self.folder / "model", {}))


def _artifact(kind: str, name: str, path: str | Path, more: dict[str, Any]) -> Any:
    """By reference: nothing is uploaded and nothing hashed; the digests are those of the manifest."""
    import wandb

    uri, known = origin(path)
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name)[:128], kind, metadata=without_secrets({**known, **more}))
    artifact.add_reference(uri, name=None if uri.startswith("file:") else "model", checksum=False)
    return artifact

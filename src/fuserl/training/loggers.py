"""`metrics.csv`: one row a logged step, complete after every row, continued after a resume."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.training.folder import RunFolder


class MetricsCsv(Logger):
    """Rows merge by step; columns grow as metrics appear. The file is replaced as a whole, so a kill never halves it.

    Lightning's own CSVLogger names folders by version and forgets earlier rows on resume, so this is ours.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = {int(row["step"]): dict(row) for row in csv.DictReader(file) if row.get("step")}

    def forget_after(self, step: int) -> None:
        """Drop rows of steps that a resumed run is about to repeat."""
        self.rows = {at: row for at, row in self.rows.items() if at <= step}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml`, not here."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of `step`."""
        at = int(step or 0)
        self.rows.setdefault(at, {"step": at}).update(metrics)
        self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(["step", *sorted({key for row in self.rows.values() for key in row})]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows[at] for at in sorted(self.rows))
        part.replace(self.path)


def make_loggers(cfg: DictConfig, folder: RunFolder, config: dict[str, Any]) -> list[Logger]:
    """The loggers of `conf/logger` beside `metrics.csv`, told the resolved configuration.

    Raises:
        FuserlError: a logger's package is absent.
    """
    try:
        loggers = [instantiate(node, save_dir=str(folder.path)) for node in cfg.values() if node]
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, FuserlError) else error) from None
    for logger in loggers:
        logger.log_hyperparams(config)
    return loggers


def close_loggers(loggers: Sequence[Logger], *, success: bool) -> None:
    """End every run, also after an exception: the next run of this process must not write into it."""
    for logger in loggers:
        logger.finalize("success" if success else "failed")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=0 if success else 1)


def wandb_logger(*, save_dir: str, project: str, group: str | None, tags: Sequence[str]) -> Logger:
    """A W&B run named after the folder: continued on resume, offline where there is no key."""
    key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    folder = Path(save_dir).resolve()
    return WandbLogger(
        project=project,
        group=group,
        tags=list(tags),
        name=folder.name,
        id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
        save_dir=save_dir,
        offline=os.environ.get("WANDB_MODE", "online" if key else "offline") != "online",
        resume="allow",
        log_model=False,
    )


def tensorboard_logger(*, save_dir: str) -> Logger:
    """TensorBoard's events in the run's `tensorboard/`.

    Raises:
        FuserlError: the package is absent.
    """
    try:
        return TensorBoardLogger(save_dir, name="", version="tensorboard", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise FuserlError(
            "the package `tensorboard` is not installed",
            where="`logger=tensorboard`",
            hint="`pip install 'fuserl[tensorboard]'`, or use another logger: metrics.csv is always written",
        ) from error

"""`metrics.csv`, complete after every row, continued after a resume; and the windows on a run beside it."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.terminal import say
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
        """Asked for by Lightning; no folder is called so."""
        return "metrics"

    @property
    def version(self) -> str:
        """Asked for by Lightning; there is one file a run."""
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


class RunLogger(Logger, ABC):
    """A window on one run beside `metrics.csv`; `Unfailing` keeps its mistakes away from the run."""

    title: str  # for people

    @property
    def name(self) -> str:
        """What Lightning asks for."""
        return self.title

    @property
    def version(self) -> str:
        """A folder holds one run, so there are none."""
        return ""

    @abstractmethod
    def start(self, config: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]) -> None:
        """Open it, told the resolved configuration and the rows that an interrupted run has already written."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values of one optimiser step."""

    @abstractmethod
    def close(self, *, success: bool) -> None:
        """End it, also after an exception."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """`start` was told them."""


class Unfailing(RunLogger):
    """A logger whose failure ends neither the run nor its record: told once, then left out."""

    def __init__(self, inner: RunLogger) -> None:
        super().__init__()
        self.inner, self.title = inner, inner.title
        self.failed = False

    def start(self, config: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]) -> None:
        """See `RunLogger`."""
        self._try(lambda: self.inner.start(config, before))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `RunLogger`."""
        if not self.failed:
            self._try(lambda: self.inner.log_metrics(metrics, step))

    def close(self, *, success: bool) -> None:
        """See `RunLogger`; a logger that has failed is closed as well."""
        self._try(lambda: self.inner.close(success=success))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the run does not depend on it
            if not self.failed:
                say(
                    f"{self.title} failed ({type(error).__name__}: {error}); the run goes on, its record is metrics.csv"
                )
            self.failed = True


def make_loggers(
    cfg: DictConfig, folder: RunFolder, config: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]
) -> list[Unfailing]:
    """Open the loggers of `conf/logger` beside `metrics.csv`.

    Args:
        config: resolved, plain.
        before: the rows of `metrics.csv` that a resumed run keeps, by step.

    Raises:
        FuserlError: a logger's package is absent.
    """
    try:
        made = [Unfailing(instantiate(node, save_dir=str(folder.path))) for node in cfg.values() if node]
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, FuserlError) else error) from None
    for logger in made:
        logger.start(config, before)
    return made


def close_loggers(loggers: Sequence[RunLogger], *, success: bool) -> None:
    """End every run, also after an exception: the next run of this process must not write into it."""
    for logger in loggers:
        logger.close(success=success)

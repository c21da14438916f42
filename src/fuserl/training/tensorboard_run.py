"""A run's window in TensorBoard: scalars as they come; settings, final numbers and answers at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fuserl.errors import FuserlError
from fuserl.reporting.window import without_secrets
from fuserl.training.logged import COLUMNS, answers, final_numbers
from fuserl.training.loggers import RunLogger


class TensorBoardRun(RunLogger):
    """Events in the run's `tensorboard/`.

    Raises:
        FuserlError: the package is absent.
    """

    title = "TensorBoard"

    def __init__(self, *, save_dir: str) -> None:
        super().__init__()
        self.folder, self.step = Path(save_dir), 0
        self.config: dict[str, Any] = {}
        self.events = self._events({})

    def _events(self, more: dict[str, Any]) -> TensorBoardLogger:
        try:
            return TensorBoardLogger(str(self.folder), name="", version="tensorboard", default_hp_metric=False, **more)
        except ModuleNotFoundError as error:
            raise FuserlError(
                "the package `tensorboard` is not installed",
                where="`logger=tensorboard`",
                hint="`pip install 'fuserl[tensorboard]'`, or use another logger: metrics.csv is always written",
            ) from error

    @rank_zero_only
    def start(self, config: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]) -> None:
        """A resumed run takes back the events of the steps that it repeats."""
        self.config = without_secrets(config)
        if before:
            self.events = self._events({"purge_step": max(before) + 1})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars at the optimiser step."""
        self.step = max(self.step, int(step or 0))
        self.events.log_metrics(dict(metrics), step=int(step or 0))

    @rank_zero_only
    def close(self, *, success: bool) -> None:
        """Settings with the final numbers (the HPARAMS tab), answers as text."""
        try:
            final = {f"final/{name}": value for name, value in final_numbers(self.folder).items()} if success else {}
            self.events.log_hyperparams(self.config, final)
            for name, rows in answers(self.folder).items():
                self.events.experiment.add_text(name, as_markdown(rows), self.step)
        finally:
            self.events.finalize("success" if success else "failed")


def as_markdown(rows: list[list[Any]]) -> str:
    """A Markdown table in which every sign of a text that is no letter, digit or space is an entity: only text."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_only_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _only_text(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    return "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in text)

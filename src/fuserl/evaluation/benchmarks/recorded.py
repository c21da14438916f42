"""Numbers that another tool made, with a place in our tables; always said to be recorded elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.protocol import Number, Result, Work

TOLD = ("tool", "version", "date", "model")  # of every file, texts
OF_NUMBER = ("name", "value", "low", "high", "over")


@dataclass(frozen=True)
class Recorded:
    """A benchmark whose numbers stand in a file.

    Args:
        path: YAML or JSON: `tool`, `version`, `date`, `model` (what was measured), `numbers`: a list of `name`, `value`
            and, where they are known, `low`, `high` (ends of the 95 % interval) and `over` (how the interval was made).
            None: nobody has measured it, and tables say so.
    """

    name: str
    path: str | None

    def texts(self) -> Iterator[tuple[str, str]]:
        """None: the questions are not here. The file is read, so that it is found to be wrong at once."""
        self._said  # noqa: B018 - raises where it is given and cannot be read
        return iter(())

    def identity(self) -> Mapping[str, Any]:
        """All that the file says."""
        return {"recorded": self._said}

    def run(self, work: Work) -> Result:
        """Nothing is asked; without a file nothing is known."""
        if self._said is None:
            note = f"not measured: run its own tool, and give its numbers as `benchmarks.{self.name}.path=FILE`"
            return Result((Number(self.name, None),), {"prompts": 0, "answers": 0}, {"recorded": True}, (), (note,))
        numbers = tuple(self._number(one) for one in self._said["numbers"])
        told = {key: str(self._said[key]) for key in TOLD}
        note = (
            f"not computed here: recorded from {told['tool']} {told['version']} on {told['date']}, "
            f"which measured `{told['model']}`"
        )
        return Result(numbers, {"prompts": 0, "answers": 0}, told | {"recorded": True, "file": self.path}, (), (note,))

    def _number(self, said: Mapping[str, Any]) -> Number:
        values = {key: said.get(key) for key in ("value", "low", "high")}
        known = {key: None if value is None else float(value) for key, value in values.items()}
        return Number(
            str(said["name"]),
            known["value"],
            known["low"],
            known["high"],
            str(said.get("over") or "recorded elsewhere"),
        )

    @cached_property
    def _said(self) -> Mapping[str, Any] | None:
        """The file; None where none is given.

        Raises:
            FuserlError: it is not there, or does not say what it must.
        """
        if not self.path:
            return None
        try:
            said = yaml.safe_load(Path(self.path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise self._wrong(f"the file cannot be read ({error})") from error
        if not isinstance(said, Mapping):
            raise self._wrong("the file is no mapping")
        if missing := [key for key in TOLD if not str(said.get(key) or "").strip()]:
            raise self._wrong(f"the file does not say `{missing[0]}`")
        numbers = said.get("numbers")
        if not isinstance(numbers, list) or not numbers:
            raise self._wrong("the file has no list `numbers`")
        for number, one in enumerate(numbers, 1):
            if problem := _problem(one):
                raise self._wrong(f"number {number} of the file {problem}")
        return said

    def _wrong(self, what: str) -> FuserlError:
        return FuserlError(
            what,
            where=f"`benchmarks.{self.name}.path={self.path}`",
            hint="YAML with tool, version, date, model, and numbers: [{name: score, value: 31.5, low: 30.1, high: 32.9}]",
        )


def _problem(said: Any) -> str | None:
    if not isinstance(said, Mapping) or not said.get("name"):
        return "has no name"
    if strange := sorted(set(map(str, said)) - set(OF_NUMBER)):
        return f"has a field `{strange[0]}`, which is none of {', '.join(OF_NUMBER)}"
    values = {key: said[key] for key in ("value", "low", "high") if said.get(key) is not None}
    if "value" not in values:
        return "has no value"
    if any(
        isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in values.values()
    ):
        return "has a value that is no number"
    if not values.get("low", values["value"]) <= values["value"] <= values.get("high", values["value"]):
        return "lies outside its interval"
    return None

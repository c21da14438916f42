"""How hard AlpacaEval-2's instructions are, as its authors estimated it, and what they asked of gamed baselines."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fuserl.errors import FuserlError

DIFFICULTY = "instruction_difficulty"


@dataclass(frozen=True)
class Difficulties:
    """What the benchmark's authors know of its instructions, by their places; rows of gamed baselines where given."""

    of: Mapping[int, float]
    gamed: Float[ndarray, "G 3"] | None  # standardised difference in length, difficulty, preference in [0, 1]


def read_difficulties(path: Path) -> Difficulties:
    """A CSV file with the column `instruction_difficulty`, and perhaps those of gamed baselines.

    Raises:
        FuserlError: it has no such column, or a row of it is no number.
    """
    of: dict[int, float] = {}
    gamed: list[tuple[float, float, float]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                place = int(row.get("index") or row.get("") or number)
                difficulty = float(row[DIFFICULTY])
                of.setdefault(place, difficulty)
                if row.get("preference") is not None and row.get("std_delta_len") is not None:
                    gamed.append((float(row["std_delta_len"]), difficulty, float(row["preference"])))
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error, OSError) as error:
        raise FuserlError(
            f"this is no table of instruction difficulties ({error!r})",
            where=str(path),
            hint="give AlpacaEval-2's `df_gamed.csv`, or `length_control.instruction_difficulty=null` to go without",
        ) from error
    if not of or not np.isfinite(list(of.values())).all() or not np.isfinite(gamed).all():
        raise FuserlError("a difficulty is no number, or there is none", where=str(path), hint="copy the file again")
    return Difficulties(of, np.array(gamed, dtype=np.float64) if gamed else None)

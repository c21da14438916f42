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
from fuserl.evaluation.benchmarks.questions import HUB

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


def located(path: str, revision: str | None) -> Path:
    """A local file, or one of the hub, downloaded.

    Raises:
        FuserlError: it is not there.
    """
    if not path.startswith(HUB):
        return Path(path).expanduser()
    from huggingface_hub import hf_hub_download

    owner, name, file = path.removeprefix(HUB).split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=revision))
    except Exception as error:  # of the hub's client, requests and the file system: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise FuserlError(
            f"the instruction difficulties cannot be loaded ({why})",
            where=path,
            hint="without a network, give the file with `length_control.instruction_difficulty=FILE`, "
            "or null to go without them",
        ) from error

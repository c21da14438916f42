"""A benchmark's folder: `graded.jsonl`, one row an answer; `result.json`; `added.json`, what was found out about it later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.protocol import Graded, Number, Result
from fuserl.records.manifest import write_text_atomically

RESULT, ADDED, GRADED = "result.json", "added.json", "graded.jsonl"
AVERAGE = "average"  # over benchmarks


def write(folder: Path, result: Result, made_from: str) -> None:
    """Write a result.

    Args:
        made_from: digest of all that decided it, see `read`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(row), ensure_ascii=False, default=str) + "\n" for row in result.answers)
    write_text_atomically(folder / GRADED, "".join(lines))
    (folder / ADDED).unlink(missing_ok=True)  # it was said of another result
    _write(folder / RESULT, result, made_from)


def add(folder: Path, more: Result) -> None:
    """Numbers, counts and notes that stand behind those of the result, in the place of what was added before."""
    kept = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    _write(folder / ADDED, more, kept["made_from"])


def _write(path: Path, result: Result, made_from: str) -> None:
    content = {"made_from": made_from} | {key: value for key, value in asdict(result).items() if key != "answers"}
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, default=str))


def read(folder: Path, made_from: str | None = None) -> Result | None:
    """The result of a folder, without its answers; None where there is none, or one made from something else.

    Raises:
        FuserlError: the file is broken.
    """
    found = _read(folder / RESULT, made_from)
    if found is None or not (folder / ADDED).exists():
        return found
    more = _read(folder / ADDED, None) or Result((), {}, {})
    numbers, notes = found.numbers + more.numbers, found.notes + more.notes
    return Result(numbers, {**found.counts, **more.counts}, {**found.about, **more.about}, (), notes)


def _read(path: Path, made_from: str | None) -> Result | None:
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if made_from is not None and kept["made_from"] != made_from:
            return None
        numbers = tuple(Number(**one) for one in kept["numbers"])
        return Result(numbers, kept["counts"], kept["about"], (), tuple(kept["notes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FuserlError(
            f"the result cannot be read ({error!r})",
            where=str(path),
            hint="delete it: it is made again from its answers",
        ) from error


def all_in(folder: Path) -> dict[str, Result]:
    """The results of all benchmarks below a folder, by name."""
    found = {path.parent.name: read(path.parent) for path in sorted(folder.glob(f"*/{RESULT}"))}
    return {name: result for name, result in found.items() if result is not None}


def graded(folder: Path) -> list[Graded]:
    """The answers of a folder with their grades, in order; none where there is no such file."""
    path = folder / GRADED
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [Graded(**json.loads(line)) for line in file if line.strip()]


def numbers_of(result: Result) -> Mapping[str, Any]:
    """Its numbers by name; what is not known is absent."""
    return {one.name: one.value for one in result.numbers if one.value is not None}


def average(found: Iterable[Number | None]) -> Number | None:
    """The plain mean of benchmarks' first numbers, as the papers average; None where one of several is not known."""
    values = [None if one is None else one.value for one in found]
    if len(values) < 2 or None in values:
        return None
    return Number(AVERAGE, sum(values) / len(values))  # type: ignore[arg-type]


def heads(found: Mapping[str, Result]) -> dict[str, Number]:
    """The number of each benchmark that tables show."""
    return {name: result.numbers[0] for name, result in found.items() if result.numbers}

"""What a run tells its loggers beside the metrics: settings without secrets, lineage, final numbers, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_ANSWERS = 200  # rows of a table of answers
COLUMNS = ("step", "domain", "prompt_id", "sample", "prompt", "answer", "tokens", "unfinished", "score")


def name_of(path: str | Path) -> str:
    """A data set's or model's name: that of its folder, with the one above where it says only what kind it is.

    >>> name_of("runs/sweep/fusesft/model"), name_of("meta-llama/Llama-3.2-1B"), name_of("sets/groups.jsonl.gz")
    ('fusesft-model', 'Llama-3.2-1B', 'groups')
    """
    path = Path(path)
    name = path.name.partition(".jsonl")[0].removesuffix(".json").removesuffix(".parquet")
    return f"{path.parent.name}-{name}" if name in ("data", "model", "target") and path.parent.name else name


def sweep_of(folder: Path) -> str | None:
    """The name of the sweep that the run is a job of: its parent folder, where that holds `sweep.json`."""
    above = folder.resolve().parent
    return above.name if (above / "sweep.json").exists() else None


def tags_of(config: Mapping[str, Any], given: list[str]) -> list[str]:
    """The given ones, then objective, target and data; at most the 64 signs that W&B takes, none twice."""
    found = [config["objective"]["name"], name_of(config["target"]["path"]), name_of(config["data"]["path"])]
    return list(dict.fromkeys(str(tag)[:64] for tag in [*given, *found] if tag))


def numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numeric leaves of nested mappings, names joined by `/`.

    >>> dict(numbers({"steps": 4, "validation": {"val/nll": {"last": 0.5}}, "tau": None, "seeds": [1]}))
    {'steps': 4, 'validation/val/nll/last': 0.5}
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from numbers(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield prefix, node


def final_numbers(folder: Path) -> dict[str, float]:
    """Of `summary.json`; none where the run did not end."""
    return dict(numbers(_json(folder / "summary.json")))


def answers(folder: Path) -> dict[str, list[list[Any]]]:
    """Rows in the order of `COLUMNS`: the last answers to the probe prompts, and those to the test prompts if any."""
    probed = _lines(folder / "samples.jsonl")
    last = max((row.get("step", 0) for row in probed), default=0)
    tables = {"samples": [row for row in probed if row.get("step", 0) == last], "test": _lines(folder / "test.jsonl")}
    return {
        name: [[row.get(column) for column in COLUMNS] for row in rows[:MOST_ANSWERS]]
        for name, rows in tables.items()
        if rows
    }


def origin(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Where a data set or a model lies, as a URI, and what its manifest says of it."""
    place = Path(path)
    if not place.exists():
        return f"https://huggingface.co/{path}", {}
    place = place.resolve()
    manifest = _json(place / "manifest.json") or (_json(place.parent / "manifest.json") if place.is_dir() else {})
    known = ("digest", "groups", "responses", "sources", "domains", "inputs", "versions", "template_hash")
    return place.as_uri(), {key: manifest[key] for key in known if key in manifest}


def inputs_of(folder: Path) -> dict[str, Any]:
    """Digests of what a run read, from its `manifest.json`."""
    manifest = _json(folder / "manifest.json")
    known = {"tokens_digest": manifest.get("inputs", {}).get("tokens"), "template_hash": manifest.get("template_hash")}
    return {name: value for name, value in known.items() if value}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

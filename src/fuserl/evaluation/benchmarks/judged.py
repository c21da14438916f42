"""What benchmarks that ask a judge have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.rewards.findings import FIELD
from fuserl.rewards.made import made

WITHOUT_AUTHORS = (
    "the judge was asked in our own words, not the authors': give their file as `graders.judge.prompts` for numbers that "
    "may be set beside published ones"
)


def ready(graders: Mapping[str, Mapping[str, Any]]) -> None:
    """Build the graders and drop them, engines not started: mistakes in their settings are found before anything is asked.

    Raises:
        FuserlError: a setting, or a file of prompts, is wrong.
    """
    for name, node in graders.items():
        made(
            {"name": name, **{key: value for key, value in node.items() if key != "domains"}}, f"graders.{name}"
        ).close()


def judge_about(
    graders: Mapping[str, Mapping[str, Any]], graded: Sequence[PromptGroup], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Who judged, by which words, when.

    Args:
        given: what a file of judgments says, where no judge was asked.
    """
    if given is not None:
        return {"judge": given["judge"], "judge_template": "unknown", "judge_prompts": None, "date": "unknown"}
    node = next(iter(graders.values()), {})
    details = [
        entry.get("detail") or {}
        for group in graded
        for response in group.responses
        for entry in response.extra.get(FIELD, {}).values()
    ]
    dates = sorted({detail["date"] for detail in details if detail.get("date")})
    templates = sorted({detail["template"] for detail in details if detail.get("template")})
    source = node.get("source") or {}
    about = {
        "judge": source.get("path"),
        "judge_revision": source.get("revision"),
        "judge_sampling": source.get("sampling"),
        "judge_template": ", ".join(templates) or None,
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else None,
    }
    return {key: value for key, value in about.items() if value is not None} | {"judge_prompts": node.get("prompts")}


def file_name(name: str) -> str:
    """The name of a model or judge without what leads to another folder.

    >>> file_name("../lab/model-1.5")
    '_lab_model-1.5'
    """
    return re.sub(r"[^\w.\-]", "_", name).lstrip(".") or "_"


def written(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path

"""Judged benchmarks in tests: `fuserl evaluate` with a model and a judge behind one server, each a function of what it is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import openai_server
from openai_server import Server

from fuserl.evaluation.benchmarks import results
from fuserl.evaluation.benchmarks.protocol import Graded, Result
from fuserl.evaluation.evaluate import evaluate
from fuserl.settings import compose, register_resolvers

MODEL, JUDGE = "model-1", "judge-1"

Says = Callable[[Sequence[Mapping[str, str]]], str | tuple[str, str]]  # messages -> text, or text and finish reason


def people(monkeypatch: Any, model: Says, judge: Says) -> None:
    """Who answers at the server."""

    def answer_to(body: Mapping[str, Any]) -> tuple[str, str, int, int]:
        said = {MODEL: model, JUDGE: judge}[body["model"]](body["messages"])
        text, finish = said if isinstance(said, tuple) else (said, "stop")
        return text, finish, 1, len(text.split())

    monkeypatch.setattr(openai_server, "answer_to", answer_to)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asked(server: Server, who: str) -> int:
    """Requests that one of them got."""
    return sum(call.body["model"] == who for call in server.calls)


def run(name: str, folder: Path, server: Server | None, *more: str) -> tuple[Result, list[Graded]]:
    """What the verb finds; without a server nobody can be asked."""
    url = server.url if server else "http://127.0.0.1:9/v1"
    register_resolvers()
    quick = [
        f"{place}.{setting}"
        for place in ("engine", f"benchmarks.{name}.graders.judge.engine")
        for setting in (f"url={url}", "backoff.first=0", "timeout=30", "patience=20")
    ]
    cfg = compose(
        "evaluate",
        [
            *("model=" + MODEL, f"benchmark={name}", f"output={folder}", "engine=openai", "progress_bar=false"),
            *(f"benchmarks.{name}.graders.judge.source.path={JUDGE}", f"benchmarks.{name}.resamples=100"),
            *quick,
            *(change.replace("@.", f"benchmarks.{name}.") for change in more),
        ],
    )
    found = results.read(evaluate(cfg) / name)
    assert found is not None
    return found, results.graded(folder / name)


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def between(text: str, name: str) -> str:
    """What stands between the fences of that name."""
    fence = re.findall(r" ([0-9a-f]{16})>", text)[0]
    return re.findall(rf"<{name} {fence}>\n(.*?)\n</{name} {fence}>", text, re.DOTALL)[0]


def values(result: Result) -> dict[str, float | None]:
    return {number.name: number.value for number in result.numbers}

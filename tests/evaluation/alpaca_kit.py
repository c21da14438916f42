"""AlpacaEval in tests: its own files where the machine has them, small files of ours, an engine that says what it is told."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kit
import pytest

from fuserl.cli import run_verb
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.source import Source

FIXTURES = kit.ROOT.parent / "shared" / "data" / "alpaca_eval_fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="AlpacaEval's own files are not here")
MODELS = ("FuseChat-Llama-3.1-8B-Instruct", "OpenHermes-2.5-Mistral-7B")
GAMED = FIXTURES / "df_gamed.csv"


class Canned:
    """The model under test: the answer to an instruction by a file of them; every request is a line of `asked`."""

    def __init__(self, source: Source, *, file: str, asked: str, **_: Any) -> None:
        self.said, self.asked = json.loads(Path(file).read_text()), Path(asked)

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        for request in requests:
            with self.asked.open("a") as log:
                log.write(request.key + "\n")
            text = self.said[request.messages[-1].content]
            if text == "too long":
                yield Failure(request.key, "the prompt is too long", passing=False)
                continue
            yield Answer(request.key, text, "length" if text == "cut" else "stop", 1, len(text.split()), {})

    def close(self) -> None:
        """Nothing to give back."""


def annotations(model: str) -> list[dict[str, Any]]:
    with gzip.open(FIXTURES / model / "annotations.json.gz") as file:
        return json.load(file)


def published(model: str) -> dict[str, Any]:
    return json.loads((FIXTURES / model / "leaderboard_row.json").read_text())


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def world(folder: Path, answers: Mapping[str, str], baseline: Mapping[str, str]) -> list[str]:
    """Questions, a baseline and a model that answers, as overrides of `fuserl evaluate`."""
    rows = [{"instruction": asked, "output": said, "generator": "base"} for asked, said in baseline.items()]
    outputs = written(folder / "baseline.json", rows)
    said = written(folder / "said.json", dict(answers))
    return [
        f"benchmarks.alpaca_eval.questions.path={outputs}",
        f"benchmarks.alpaca_eval.baseline.path={outputs}",
        "benchmarks.alpaca_eval.length_control.instruction_difficulty=null",
        "benchmarks.alpaca_eval.length_control.resamples=0",
        "engine._target_=alpaca_kit.Canned",
        f"+engine.file={said}",
        f"+engine.asked={folder / 'asked'}",
    ]


def evaluated(output: Path, judge: str, *overrides: str) -> dict[str, Any]:
    """`fuserl evaluate benchmark=alpaca_eval`, and what it wrote."""
    judge = f"alpaca_judge@benchmarks.alpaca_eval={judge}"
    run_verb("evaluate", ["model=some/model", "benchmark=[alpaca_eval]", judge, f"output={output}", *overrides])
    return json.loads((output / "alpaca_eval" / "result.json").read_text())


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    return {one["name"]: one["value"] for one in result["numbers"]}


@pytest.fixture
def offline(monkeypatch):
    """Every connection but to this machine is a failure of the test."""
    connect = socket.socket.connect

    def guarded(self, address):
        assert self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in ("127.0.0.1", "::1"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail(f"a name is looked up: {a}"))

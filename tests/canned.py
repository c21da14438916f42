"""A model whose answers the test has written, behind the real way from questions to a result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuserl.evaluation.benchmarks.protocol import Result
from fuserl.evaluation.benchmarks.work import Model, Worker
from fuserl.rewards.made import made
from fuserl.settings import plain
from fuserl.sources.protocol import Answer, Request, Sampling
from fuserl.sources.source import Source


@dataclass
class Canned:
    """Answers by the last user turn; counts what it is asked."""

    answers: Mapping[str, str]
    asked: list[Request] = field(default_factory=list)
    closed: bool = False

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """What was written for the prompt."""
        for request in requests:
            self.asked.append(request)
            text = self.answers[request.messages[-1].content]
            yield Answer(request.key, text, "stop", 1, len(text.split()), {"seed": request.seed}, "0" * 16)

    def close(self) -> None:
        """Nothing is held."""
        self.closed = True


def canned(cfg: Any, name: str, folder: Path, answers: Mapping[str, str], engine: Canned | None = None) -> Result:
    """The benchmark of a configuration, with these answers."""
    node = dict(plain(cfg)["benchmarks"][name])
    graders = dict(node.pop("graders", None) or {})
    benchmark = made(node, name)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source("canned", "canned", Sampling(1))
    model = Model(source, lambda _: engine or Canned(answers), folder, 0, None, "error")
    try:
        return benchmark.run(Worker(name, model, folder / name, graders))
    finally:
        model.close()

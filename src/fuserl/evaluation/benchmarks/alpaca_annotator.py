"""AlpacaEval's own annotators as a scorer: their template, order of answers and reading; our way of asking a server."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fuserl.errors import FuserlError
from fuserl.evaluation.benchmarks.alpaca_templates import Template, control, template_of
from fuserl.evaluation.benchmarks.alpaca_wire import JudgeWire
from fuserl.rewards.fences import CONTROL
from fuserl.rewards.protocol import Item, Score
from fuserl.sources.openai import OpenAIEngine
from fuserl.sources.protocol import Answer, Engine, Failure, Request, Sampling
from fuserl.sources.source import Source

BASELINE = "baseline"  # the field of a group's `extra` that holds the baseline's answer
SAID = 300  # characters of the judge's words that are kept
DRAW = 1.5
SAMPLED = ("max_tokens", "temperature", "top_p", "stop")  # of an annotator's settings, what `Sampling` knows
OURS = (  # of an annotator's settings, what is ours to decide, or is no matter of a request
    "model_name", "is_chat", "requires_chatml", "is_strip", "num_procs", "batch_size", "price_per_token", "client_kwargs",
    "client_config_path", "openai_api_keys", "openai_api_base", "openai_organization_ids", "n_retries", "sleep_time",
)  # fmt: skip


class Annotator:
    """The preference of one of AlpacaEval's annotators, from 1 (the baseline's answer) to 2 (the response).

    What the judge's words do not say is unknown. Equal texts are a draw, and nobody is asked.

    Args:
        config: an annotator's name in the package, a folder with its `configs.yaml`, or the settings themselves.
        model: the judge's name at the server; None: the annotator's own.
        engine: conf/engine/openai.yaml, or openai_hosted.
        seed: of the order in which the two answers stand, with the instruction; 0 in published numbers.

    Raises:
        FuserlError: the package is not installed, there is no such annotator, it cannot be asked one pair at a time
            through chat completions, or no server is given.
    """

    def __init__(
        self, *, name: str, config: str | Mapping[str, Any], model: str | None, engine: Callable[..., Any], seed: int
    ) -> None:
        self.name, self.seed = name, seed
        if not isinstance(engine, OpenAIEngine):
            raise FuserlError(
                "an annotator's judge is asked through a server of chat completions",
                where=f"`graders.{name}.engine`",
                hint="openai (any server), or openai_hosted",
            )
        self.template: Template = template_of(config, seed)
        given = dict(self.template.request)
        if unusual := sorted({"tokens_to_favor", "tokens_to_avoid"} & given.keys()):
            raise FuserlError(
                f"the annotator wants `{unusual[0]}`, which needs OpenAI's own tokenizer",
                where=f"`graders.{name}.config`",
                hint="take another annotator",
            )
        sampling = {key: value for key, value in given.items() if key in SAMPLED and value is not None}
        sampling["stop"] = tuple(sampling.get("stop") or ())
        self.beside = {key: value for key, value in given.items() if key not in (*SAMPLED, *OURS)}
        self.source = Source(name, model or str(given.get("model_name")), Sampling(**{"max_tokens": 2048} | sampling))
        self._engine = engine
        self._running: Engine | None = None

    def identity(self) -> Mapping[str, Any]:
        """Judge, template, how it is asked and read; not the server."""
        return {
            "judge": self.source.identity(),
            "sampling": self.source.sampling.plain(),
            "beside": self.beside,
            "annotator": dict(self.template.identity()),
            "defused": CONTROL.pattern,
        }

    def context(self, item: Item) -> str:
        """The baseline's answer."""
        return item.group.extra[BASELINE]

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """A preference a response, as they come."""
        if self._running is None:
            wire = JudgeWire(self.source, self._engine.parameters, self._engine.price, self._engine.key, self.beside)
            self._running = self._engine.over(wire)
        asked: dict[str, Item] = {}
        draws: deque[Score] = deque()

        def requests() -> Iterator[Request]:
            for item in items:
                if item.response.text == item.group.extra[BASELINE]:
                    draws.append(Score(item.key, DRAW, detail={"why": "both answers are the same text"}))
                    continue
                request = self._request(item)
                asked[request.key] = item
                yield request

        for found in self._running.answer(requests()):
            yield from _emptied(draws)
            item = asked.pop(found.key)
            yield (
                Failure(item.key, found.what, found.passing) if isinstance(found, Failure) else self._read(item, found)
            )
        yield from _emptied(draws)

    def close(self) -> None:
        """Give back connections."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _request(self, item: Item) -> Request:
        content = hashlib.sha256(json.dumps([self.identity(), item.key], sort_keys=True, default=str).encode())
        seed = int.from_bytes(content.digest()[:8], "big") % 2**31
        return Request(content.hexdigest()[:32], self.template.asked(*_texts(item)), self.source.sampling, seed)

    def _read(self, item: Item, answer: Answer) -> Score:
        preference = self.template.read(*_texts(item), answer.text, answer.extra["choice"])
        today = datetime.now(UTC).date().isoformat()
        detail = {
            "judge": self.source.path,
            "annotator": self.template.name,
            "template": self.template.hash,
            "date": today,
        }
        detail["said"] = answer.text[:SAID]
        if any(map(control, _texts(item))):
            detail["defused"] = True
        if preference is None:
            return Score(item.key, None, "unknown", detail | {"why": "the judge's words name no answer"})
        return Score(item.key, preference, detail=detail)


def _texts(item: Item) -> tuple[str, str, str]:
    """Instruction, the baseline's answer, the model's."""
    return item.group.prompt[-1].content, item.group.extra[BASELINE], item.response.text


def _emptied(scores: deque[Score]) -> Iterator[Score]:
    while scores:
        yield scores.popleft()

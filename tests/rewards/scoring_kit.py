"""Groups, and scorers that tests run through the verb, also in another process: slow, failing, wrong ones. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards.protocol import Item, Score
from fuserl.sources.protocol import Failure


def groups(num: int = 6, sources: int = 2, samples: int = 2, seed: int = 0) -> list[PromptGroup]:
    """Domains `math` (with a reference) and `chat` in turn; some answers are equal, one in nine is empty."""
    rng = Random(seed)
    return [
        PromptGroup(
            f"p{g}",
            (Message("user", f"question {g}"),),
            tuple(
                Response(
                    f"s{s}", "" if rng.random() < 0.11 else f"because {'so ' * rng.randint(0, 3)}{rng.randint(3, 5)}", n
                )
                for s in range(sources)
                for n in range(samples)
            ),
            domain=("math", "chat")[g % 2],
            reference=("4", None)[g % 2],
        )
        for g in range(num)
    ]


class Length:
    """The answer's length, in windows answered backwards; every item it is asked is a line in `asked`."""

    def __init__(
        self, name: str, *, asked: str | None = None, seconds: float = 0.0, window: int = 3, weight: float = 1.0
    ) -> None:
        self.name, self.asked, self.seconds, self.window, self.weight = name, asked, seconds, window, weight

    def identity(self) -> Mapping[str, Any]:
        return {"weight": self.weight}

    def context(self, item: Item) -> None:
        return None

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        stream = iter(items)
        while window := list(islice(stream, self.window)):
            for item in reversed(window):
                time.sleep(self.seconds)
                if self.asked:
                    with Path(self.asked).open("a") as file:
                        file.write(f"{item.key}\n")
                yield self.one(item)

    def one(self, item: Item) -> Score | Failure:
        """No number for an empty answer; right where it ends with its reference."""
        text = item.response.text
        if not text.strip():
            return Score(item.key, None, "unknown", {"why": "the answer is empty"})
        verdict = None if item.group.reference is None else "right" if text.endswith(item.group.reference) else "wrong"
        return Score(item.key, self.weight * len(text), verdict)

    def close(self) -> None:
        """Nothing to give back."""


class Failing(Length):
    """Fails on answers that hold a word, as long as the file `mended` is not there."""

    def __init__(self, name: str, *, word: str, mended: str, **more: Any) -> None:
        super().__init__(name, **more)
        self.word, self.mended = word, mended

    def one(self, item: Item) -> Score | Failure:
        if self.word in item.response.text and not Path(self.mended).exists():
            return Failure(item.key, f"server error 500 at {len(item.response.text)}", passing=True)
        return super().one(item)


class Bad(Length):
    """What no scorer may do: `nan`, `verdict`, `twice`, `silent`, `stranger`."""

    def __init__(self, name: str, *, how: str) -> None:
        super().__init__(name)
        self.how = how

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        for item in items:
            if self.how == "silent":
                continue
            yield {
                "nan": Score(item.key, float("nan")),
                "verdict": Score(item.key, 1.0, "maybe"),
                "twice": Score(item.key, 1.0),
                "stranger": Score("another", 1.0),
            }[self.how]
            if self.how == "twice":
                yield Score(item.key, 1.0)


class Peers(Length):
    """The share of the group's other answers that are shorter: its context is the group."""

    def context(self, item: Item) -> Any:
        return sorted(len(response.text) for response in item.group.responses)

    def one(self, item: Item) -> Score | Failure:
        others = [len(response.text) for response in item.group.responses]
        return Score(item.key, sum(other < len(item.response.text) for other in others) / len(others))

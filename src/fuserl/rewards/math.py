"""Grading mathematics: an answer is found in the text and compared with the right one by math-verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup
from fuserl.rewards.answers import Answer
from fuserl.rewards.described import described, direct
from fuserl.rewards.parallel import in_parallel, number_of_workers
from fuserl.rewards.protocol import Item, Score
from fuserl.rewards.workers import NotStarted, Unanswered, Workers
from fuserl.sources.protocol import Failure

PROTOCOL = 1  # of reading: to be raised when the same answer would be read otherwise
REWARD = {"right": 1.0, "wrong": 0.0, "unknown": None}
LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy")


class MathScorer:
    """`right` if the answer equals the group's, as mathematics.

    `unknown`, never wrong: a group without a right answer, one that cannot be read as mathematics, an answer that is
    mathematics but cannot be read, a comparison that takes too long. `wrong`: another value, or no answer at all.

    Args:
        answer: where in a response the answer stands; None where there is none.
        gold: a group's right answer; None where it has none.
        timeout_seconds: CPU time for one comparison.
        memory_mb: address space of one worker.
        workers: processes that compare; `auto`: one a core.

    Raises:
        FuserlError: math-verify is not installed, or a limit is no positive number.
    """

    def __init__(
        self,
        *,
        answer: Answer,
        gold: Callable[[PromptGroup], str | None],
        timeout_seconds: float,
        memory_mb: int,
        workers: int | str,
        name: str = "math",
    ) -> None:
        self.name, self.answer, self.gold = name, direct(answer), direct(gold)
        for setting, value, least in (("timeout_seconds", timeout_seconds, 0.1), ("memory_mb", memory_mb, 512)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise FuserlError(
                    f"{value!r} is no limit", where=f"`rewards.{name}.{setting}`", hint=f"give {least} or more"
                )
        self.limits = (float(timeout_seconds), int(memory_mb))
        self.number = number_of_workers(workers, f"`rewards.{name}.workers`")
        try:
            self.versions = {library: version(library) for library in LIBRARIES}
        except PackageNotFoundError as error:
            raise FuserlError(
                f"{error.name} is not installed",
                where=f"`rewards.{name}`",
                hint="pip install 'math-verify[antlr4_9_3]'",
            ) from error
        self.workers = Workers("fuserl.rewards.math_worker", self.limits, self.number)

    def identity(self) -> Mapping[str, Any]:
        """How answers are found, the limits and the libraries."""
        return {
            "answer": described(self.answer),
            "gold": described(self.gold),
            "timeout_seconds": self.limits[0],
            "memory_mb": self.limits[1],
            "versions": self.versions,
            "protocol": PROTOCOL,
        }

    def context(self, item: Item) -> str | None:
        """The right answer, which may stand in any field."""
        return self.gold(item.group)

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Compared side by side."""
        return in_parallel(self._one, items, self.number)

    def close(self) -> None:
        """End the workers."""
        self.workers.close()

    def _one(self, item: Item) -> Score | Failure:
        gold = self.gold(item.group)
        if gold is None:
            return Score(item.key, None, "unknown", {"why": "the group has no right answer"})
        answer = self.answer(item.response.text)
        if answer is None:
            return Score(item.key, 0.0, "wrong", {"why": "no answer found"})
        try:
            reply = self.workers.ask({"gold": gold, "answer": answer})
        except Unanswered as error:
            reply = {"verdict": "unknown", "why": f"the comparison was stopped: {error}"}
        except NotStarted as error:
            raise FuserlError(
                f"a worker did not start: {error}",
                where=f"`rewards.{self.name}`",
                hint="`pip install 'math-verify[antlr4_9_3]'`, or more memory: `memory_mb`",
            ) from error
        detail = {"answer": answer[:200], **({"why": reply["why"]} if reply["why"] else {})}
        return Score(item.key, REWARD[reply["verdict"]], reply["verdict"], detail)

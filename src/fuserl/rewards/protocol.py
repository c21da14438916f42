"""What a scorer is shown and what it says; every scorer speaks this and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fuserl.records.schema import PromptGroup, Response
from fuserl.sources.protocol import Failure


@dataclass(frozen=True, slots=True)
class Item:
    """One response to be scored, with the group it stands in (prompt, domain, reference, other responses)."""

    key: str  # names scorer, prompt, reference and response by content
    group: PromptGroup
    response: Response


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's finding on one response.

    A verifier that cannot tell (no reference, an answer it cannot read, a time-out of its own) says `unknown`, never
    wrong. A number and a verdict may both be there.
    """

    key: str  # of its item
    reward: float | None = None  # the scorer's units, higher is better; finite; None: it has no number
    verdict: str | None = None  # right, wrong, unknown; None: this scorer verifies nothing
    detail: Mapping[str, Any] = field(
        default_factory=dict
    )  # why, briefly; plain JSON; texts cut to a few hundred signs


@runtime_checkable
class Scorer(Protocol):
    """A way to grade responses."""

    name: str  # under which its scores are kept, side by side with others'

    def identity(self) -> Mapping[str, Any]:
        """All that decides a score beside prompt, reference and response: model, template, limits, versions."""
        ...

    def context(self, item: Item) -> Any:
        """What else of the item's group decides its score, as plain JSON (unit tests, constraints, opponents)."""
        ...

    def score(self, items: Iterable[Item]) -> Iterator[Score | Failure]:
        """Scores in any order, as they come, one a item. A `Failure` is no score: it is told, and scored again."""
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...

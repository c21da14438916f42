"""Rules that look at one whole group: what a prompt must have to be of use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fuserl.curation.rules import Found
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup, Response


@runtime_checkable
class GroupRule(Protocol):
    """A rule that judges a whole group and needs no other: it says so, and no pass over the data is made for it."""

    needs_no_other: bool


@dataclass(frozen=True)
class Blank:
    """An answer without any text. No data set that is trained on may hold one, so this rule always comes last."""

    name: str = "blank"

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        return None if response.text.strip() else "there is no text"


@dataclass(frozen=True)
class AtLeast:
    """So many responses of a source, and so many such sources of a prompt; what has fewer goes.

    Raises:
        FuserlError: a number is none.
    """

    name: str
    samples: int  # responses of a source; a source with fewer loses them all
    sources: int  # sources that have them; a prompt with fewer goes
    needs_no_other: bool = True

    def __post_init__(self) -> None:
        for key in ("samples", "sources"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FuserlError(
                    f"`{value}` is no number of {key}", where=f"`rules.{self.name}.{key}`", hint="1 or more"
                )

    def fit(self, groups: Iterable[PromptGroup]) -> None:
        """Nothing is to be read."""

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """None."""
        return {}

    def __call__(self, group: PromptGroup) -> Found:
        """What a group has too little of."""
        samples = Counter(response.source for response in group.responses)
        enough = sum(number >= self.samples for number in samples.values())
        if enough < self.sources:
            return Found(f"{enough} sources with {self.samples} responses or more, of {self.sources} wanted")
        few = {
            place: f"one of {samples[response.source]} of its source, of {self.samples} wanted"
            for place, response in enumerate(group.responses)
            if samples[response.source] < self.samples
        }
        return Found(None, few)

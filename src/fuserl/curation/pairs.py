"""Which of a prompt's responses are set against each other: what `objectives.pairing` finds in tables, found in groups.

Rewards are compared as they are stored, in 64 bits, with the tolerance that training has: a pair that is selected here
is the pair that training finds in what is left, and no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup

SLACK = 1e-6  # of both rewards' sizes together: 0.15 - 0.05 is a little off 0.1 in any precision
UNSCORED = "no response is scored"
EQUAL = "best and worst are worth the same"
NOT_WORSE = "the wrong one is not worth less than the right one"
SAME_TEXT = "both sides say the same"
TOO_NEAR = "the gap is below the window"
TOO_FAR = "the gap is above the window"


class Pair(NamedTuple):
    """Two places in `group.responses`."""

    chosen: int
    rejected: int


@dataclass(frozen=True)
class Window:
    """The reward gaps that a pair may have, the ends included; null is no limit.

    Raises:
        FuserlError: no gap lies inside.
    """

    min_gap: float | int | None = None  # reward units
    max_gap: float | int | None = None

    def __post_init__(self) -> None:
        limits = [gap for gap in (self.min_gap, self.max_gap) if gap is not None]
        numbers = all(isinstance(gap, int | float) and not isinstance(gap, bool) and gap >= 0 for gap in limits)
        if not numbers or limits != sorted(limits):
            raise FuserlError(
                f"no gap lies between {self.min_gap} and {self.max_gap}",
                where="`min_gap` and `max_gap` of a preference protocol",
                hint="two numbers from 0, the smaller one first; null for no limit",
            )

    def misses(self, high: float, low: float) -> str | None:
        """Why a gap lies outside, None where it lies inside.

        >>> Window(0.01, 0.1).misses(0.3, 0.2) is None  # though 0.3 - 0.2 is 0.09999999999999998
        True
        """
        slack = SLACK * (abs(high) + abs(low))
        if self.min_gap is not None and not high - low >= self.min_gap - slack:
            return TOO_NEAR
        if self.max_gap is not None and not high - low <= self.max_gap + slack:
            return TOO_FAR
        return None


@dataclass(frozen=True)
class Sides:
    """Which responses may be chosen and which rejected, and how far apart.

    Raises:
        FuserlError: a verdict is none of those, or the window is empty.
    """

    chosen: str = "any"  # any, or right: verified as right
    rejected: str = "any"  # any, or wrong: verified as wrong
    window: Window = Window()

    def __post_init__(self) -> None:
        for name, allowed in (("chosen", ("any", "right")), ("rejected", ("any", "wrong"))):
            if getattr(self, name) not in allowed:
                raise FuserlError(
                    f"`{getattr(self, name)}` is no choice of `{name}`",
                    where=f"`{name}` of a preference protocol",
                    hint=f"one of {', '.join(allowed)}",
                )

    def best(self, group: PromptGroup, places: Iterable[int]) -> int | None:
        """The place that would be chosen among these: the highest reward, the first of equals; None: there is none."""
        return max(of_verdict(group, scored(group, places), self.chosen), key=partial(reward_at, group), default=None)

    def pair(self, group: PromptGroup, places: Iterable[int]) -> Pair | str:
        """The pair among the responses at these places, or why there is none."""
        there = list(scored(group, places))
        chosen = self.best(group, there)
        rejected = min(of_verdict(group, there, self.rejected), key=partial(reward_at, group), default=None)
        if chosen is None or rejected is None:
            missing = self.chosen if chosen is None else self.rejected
            return UNSCORED if not there else f"no response is {missing}"
        high, low = reward_at(group, chosen), reward_at(group, rejected)
        if not high > low:
            return EQUAL if (self.chosen, self.rejected) == ("any", "any") else NOT_WORSE
        if group.responses[chosen].text == group.responses[rejected].text:
            return SAME_TEXT
        return self.window.misses(high, low) or Pair(chosen, rejected)


def scored(group: PromptGroup, places: Iterable[int]) -> Iterator[int]:
    """Those whose response has a reward."""
    return (place for place in places if group.responses[place].reward is not None)


def of_verdict(group: PromptGroup, places: Iterable[int], verdict: str) -> Iterator[int]:
    """Those whose response has this verdict; all of them for `any`."""
    return (place for place in places if verdict in ("any", group.responses[place].verdict))


def by_source(group: PromptGroup) -> dict[str, list[int]]:
    """The places of each source's responses, sources in the order of their first response."""
    found: dict[str, list[int]] = {}
    for place, response in enumerate(group.responses):
        found.setdefault(response.source, []).append(place)
    return found


def reward_at(group: PromptGroup, place: int) -> float:
    """The reward at a place that has one; NaN where it has none."""
    reward = group.responses[place].reward
    return float("nan") if reward is None else reward

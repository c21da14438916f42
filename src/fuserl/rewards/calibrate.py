"""Numbers of different scorers made comparable: less their mean, over their standard deviation.

A pass over the data gathers the moments; they are kept in the manifest, and the data decides them alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fuserl.errors import FuserlError

SCOPES = ("none", "domain", "source_domain")  # over which answers a mean is taken


@dataclass(slots=True)
class Moments:
    """Count, mean and spread of numbers, one by one (Welford's recurrence)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed squared deviations from the mean

    def add(self, number: float) -> None:
        """One number more."""
        self.count += 1
        off = number - self.mean
        self.mean += off / self.count
        self.squares += off * (number - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation of these numbers themselves, not of what they are a sample of."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def standardised(self, number: float) -> float:
        """Standard deviations above the mean; 0 where all numbers are equal.

        >>> moments = Moments()
        >>> for number in (1.0, 3.0):
        ...     moments.add(number)
        >>> moments.standardised(4.0)
        2.0
        """
        return (number - self.mean) / self.std if self.std else 0.0

    def plain(self) -> dict[str, float]:
        """For the manifest."""
        return {"count": self.count, "mean": self.mean, "std": self.std}


Place = tuple[str, str, str]  # scorer, domain, source; an empty source: all of them


@dataclass
class Calibration:
    """The moments of every scorer by domain, over all sources and of each one."""

    moments: dict[Place, Moments] = field(default_factory=dict)

    def add(self, scorer: str, domain: str, source: str, number: float) -> None:
        """One answer's number."""
        for place in ((scorer, domain, ""), (scorer, domain, source)):
            self.moments.setdefault(place, Moments()).add(number)

    def standardised(self, number: float, scorer: str, domain: str, source: str, *, scope: str) -> float:
        """The number as it is (`none`), or against all answers of its domain, or against its source's there.

        Against its own source's, every source is as good as every other on average; what is left tells a source's
        answers apart.
        """
        if scope == "none":
            return number
        return self.moments[scorer, domain, source if scope == "source_domain" else ""].standardised(number)

    def plain(self) -> dict[str, dict[str, Any]]:
        """For the manifest: scorer -> domain, or `domain/source` -> moments."""
        found: dict[str, dict[str, Any]] = {}
        for (scorer, domain, source), moments in sorted(self.moments.items()):
            found.setdefault(scorer, {})[f"{domain}/{source}" if source else domain] = moments.plain()
        return found


def checked_scope(scope: str) -> str:
    """The scope itself.

    Raises:
        FuserlError: there is no such scope.
    """
    if scope not in SCOPES:
        raise FuserlError(
            f"`{scope}` is no scope of a mean", where="`combine.standardise`", hint=f"one of {', '.join(SCOPES)}"
        )
    return scope


def checked_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights as plain numbers.

    Raises:
        FuserlError: there are none, or one is no finite number.
    """
    if not weights:
        raise FuserlError(
            "no scorer has a weight",
            where="`combine.weights`",
            hint="such as `'combine.weights={armorm: 1.0, judge: 0.5}'`",
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise FuserlError(
                f"the weight of `{name}` is {weight!r}", where="`combine.weights`", hint="give a finite number"
            )
    return {name: float(weight) for name, weight in weights.items()}

"""From what several scorers found to one reward and one verdict an answer. A combination sees a whole group and is
pure. `conf/combine/` builds them from these classes; what the scorers found stays beside the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fuserl.errors import FuserlError
from fuserl.rewards.calibrate import Calibration, checked_scope, checked_weights

MISSING = ("error", "drop_number")  # what to do where a number that is needed is not there


class Finding(NamedTuple):
    """A scorer's number and verdict, either of which may be absent."""

    reward: float | None = None
    verdict: str | None = None


class Row(NamedTuple):
    """A response as combinations see it."""

    where: str  # for messages
    domain: str
    source: str
    findings: Mapping[str, Finding]  # by scorer


@dataclass(frozen=True, slots=True)
class Final:
    """What a response's reward and verdict become."""

    reward: float | None = None
    verdict: str | None = None


@runtime_checkable
class Combination(Protocol):
    """A way to combine."""

    def reads(self) -> frozenset[str]:
        """The scorers whose findings it needs."""
        ...

    def standardises(self) -> bool:
        """Whether it needs the moments of the whole data set."""
        ...

    def __call__(self, group: Sequence[Row], calibration: Calibration) -> list[Final]:
        """One result a response, in order.

        Raises:
            FuserlError: a number is missing, and none may be.
        """
        ...


@dataclass(frozen=True)
class Single:
    """One scorer's reward and verdict, as they are."""

    scorer: str | None = None  # null: the run's only scorer, which the verb fills in
    right_at: float | None = None  # a verdict from the number instead: right from here on, wrong below

    def reads(self) -> frozenset[str]:
        """The scorer."""
        return frozenset([self.scorer] if self.scorer else [])

    def standardises(self) -> bool:
        """Never."""
        return False

    def __call__(self, group: Sequence[Row], calibration: Calibration) -> list[Final]:
        """See `Combination`."""
        found = [row.findings.get(self.scorer or "", Finding()) for row in group]
        return [
            Final(f.reward, f.verdict if self.right_at is None else verdict_at(f.reward, self.right_at)) for f in found
        ]


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of scorers' numbers, standardised or not. It is no mean: weights need not sum to 1."""

    weights: Mapping[str, float] | None  # scorer -> weight
    standardise: str = "none"
    on_missing: str = "drop_number"
    verdict: str | None = None  # the scorer whose verdict stands
    right_at: float | None = None  # a verdict from the sum instead

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        checked_scope(self.standardise)
        if self.on_missing not in MISSING:
            raise FuserlError(
                f"`{self.on_missing}` is no way to treat a missing number",
                where="`combine.on_missing`",
                hint=f"one of {', '.join(MISSING)}",
            )
        if self.verdict and self.right_at is not None:
            raise FuserlError(
                "a verdict comes from a scorer or from the number, not from both",
                where="`combine.verdict` and `combine.right_at`",
                hint="set one of them to null",
            )

    def reads(self) -> frozenset[str]:
        """All scorers with a weight, and the one with the verdict."""
        return frozenset(self.weights or ()) | frozenset([self.verdict] if self.verdict else [])

    def standardises(self) -> bool:
        """Whether a scope was chosen."""
        return self.standardise != "none"

    def __call__(self, group: Sequence[Row], calibration: Calibration) -> list[Final]:
        """See `Combination`."""
        return [self._final(row, calibration) for row in group]

    def _final(self, row: Row, calibration: Calibration) -> Final:
        total = 0.0
        for name, weight in (self.weights or {}).items():
            number = row.findings.get(name, Finding()).reward
            if number is None:
                return self._without(row, name)
            total += weight * calibration.standardised(number, name, row.domain, row.source, scope=self.standardise)
        return Final(total, self._verdict(row, total))

    def _without(self, row: Row, name: str) -> Final:
        if self.on_missing == "error":
            raise FuserlError(
                f"`{name}` has no number for this answer",
                where=row.where,
                hint="`combine.on_missing=drop_number` leaves such answers without a reward",
            )
        return Final(None, self._verdict(row, None))

    def _verdict(self, row: Row, number: float | None) -> str | None:
        if self.right_at is not None:
            return verdict_at(number, self.right_at)
        return row.findings.get(self.verdict, Finding()).verdict if self.verdict else None


@dataclass(frozen=True)
class Gated:
    """A verifier's verdict beside another combination's number: "correct, with the highest score" (papers: FuseChat-3.0).

    Objectives rank by reward alone. With `wrong_below_right` the wrong answers of a group are moved down together, as
    far as it takes for the best of them to lie that far beneath the worst right one; then best and worst reward of a
    source are "correct with the highest score" and "wrong with the lowest". Gaps across the gate mean nothing then.
    """

    verdict: str  # the scorer that verifies
    number: Combination
    wrong_below_right: float | None = None  # reward units, above 0; null: numbers stay as they are

    def __post_init__(self) -> None:
        if self.wrong_below_right is not None and not self.wrong_below_right > 0:
            raise FuserlError(
                f"wrong answers cannot lie {self.wrong_below_right} beneath right ones",
                where="`combine.wrong_below_right`",
                hint="give a distance above 0 in reward units, or null",
            )

    def reads(self) -> frozenset[str]:
        """The verifier, and what the number needs."""
        return self.number.reads() | {self.verdict}

    def standardises(self) -> bool:
        """Whether the number does."""
        return self.number.standardises()

    def __call__(self, group: Sequence[Row], calibration: Calibration) -> list[Final]:
        """See `Combination`."""
        finals = [
            replace(final, verdict=row.findings.get(self.verdict, Finding()).verdict)
            for final, row in zip(self.number(group, calibration), group, strict=True)
        ]
        return finals if self.wrong_below_right is None else lowered(finals, self.wrong_below_right)


@dataclass(frozen=True)
class ByDomain:
    """One for each domain named, another for all the rest."""

    domains: Mapping[str, Combination]
    otherwise: Combination

    def reads(self) -> frozenset[str]:
        """What any of them needs."""
        return self.otherwise.reads().union(*(one.reads() for one in self.domains.values()))

    def standardises(self) -> bool:
        """Whether any of them does."""
        return self.otherwise.standardises() or any(one.standardises() for one in self.domains.values())

    def __call__(self, group: Sequence[Row], calibration: Calibration) -> list[Final]:
        """See `Combination`; a group has one domain."""
        chosen = self.domains.get(group[0].domain, self.otherwise) if group else self.otherwise
        return chosen(group, calibration)


def verdict_at(number: float | None, right_at: float) -> str:
    """A verdict from a number; unknown where there is none.

    >>> verdict_at(0.5, 0.5), verdict_at(0.4, 0.5), verdict_at(None, 0.5)
    ('right', 'wrong', 'unknown')
    """
    return "unknown" if number is None else "right" if number >= right_at else "wrong"


def lowered(finals: Sequence[Final], distance: float) -> list[Final]:
    """The results with all wrong ones moved down together until they lie beneath every right one.

    Order and gaps among right ones, and among wrong ones, stay; unknown ones and those without a number too.

    >>> [f.reward for f in lowered([Final(1.0, "right"), Final(2.0, "wrong"), Final(1.5, "wrong")], 0.5)]
    [1.0, 0.5, 0.0]
    """
    right = [f.reward for f in finals if f.verdict == "right" and f.reward is not None]
    wrong = [f.reward for f in finals if f.verdict == "wrong" and f.reward is not None]
    excess = max(wrong) - (min(right) - distance) if right and wrong else 0.0
    if excess <= 0:
        return list(finals)

    def moved(final: Final) -> Final:
        if final.verdict != "wrong" or final.reward is None:
            return final
        return replace(final, reward=final.reward - excess)

    return [moved(final) for final in finals]


def named(combination: Any, scorers: Sequence[str]) -> Any:
    """The combination, with the run's only scorer where a `Single` names none.

    Raises:
        FuserlError: the run has no scorer, or several.
    """
    if not isinstance(combination, Single) or combination.scorer:
        return combination
    if len(scorers) != 1:
        raise FuserlError(
            f"{len(scorers)} scorers run ({', '.join(scorers)}): which one's reward counts?"
            if scorers
            else "no scorer was chosen",
            where="`combine.scorer`" if scorers else "`reward`",
            hint=f"`combine.scorer={scorers[0]}`, or `combine=weighted`, `gated`, `fusechat3`"
            if scorers
            else "such as `reward=math`, or `reward=[math,armorm]`",
        )
    return replace(combination, scorer=scorers[0])

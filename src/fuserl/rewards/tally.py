"""Counting what scorers found, by source and domain: nothing unknown is a zero, and every reason is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from fuserl.records.schema import PromptGroup
from fuserl.rewards.findings import Entry

COMBINED = "reward"  # the name under which the combination stands beside the scorers
WHY = "why"  # of `Score.detail`: why there is no number, or no verdict
NO_REASON = "no reason given"
TOLD = 10  # reasons of a scorer that are told


@dataclass(slots=True)
class Counts:
    """Of one scorer, on one source's answers in one domain."""

    responses: int = 0
    numbers: int = 0
    total: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    without: int = 0  # neither a number nor a verdict

    def add(self, reward: float | None, verdict: str | None) -> None:
        """One response."""
        self.responses += 1
        if reward is not None:
            self.numbers += 1
            self.total += reward
        if verdict is not None:
            self.verdicts[verdict] += 1
        self.without += reward is None and verdict is None

    @property
    def mean(self) -> float | None:
        """Of the numbers, None where there are none."""
        return self.total / self.numbers if self.numbers else None

    def plain(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "responses": self.responses,
            "numbers": self.numbers,
            "mean": self.mean,
            **{verdict: self.verdicts[verdict] for verdict in ("right", "wrong", "unknown")},
            "without": self.without,
        }


@dataclass
class Tally:
    """Counts by (scorer, source, domain), and the reasons why something is unknown or missing, by scorer."""

    counts: dict[tuple[str, str, str], Counts] = field(default_factory=dict)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, group: PromptGroup, found: list[dict[str, Entry]]) -> None:
        """A group with its final rewards and verdicts."""
        for response, entries in zip(group.responses, found, strict=True):
            for name, entry in entries.items():
                reward, verdict = entry.get("reward"), entry.get("verdict")
                self._of(name, response.source, group.domain).add(reward, verdict)
                if verdict == "unknown" or (reward is None and verdict is None):
                    why = str((entry.get("detail") or {}).get(WHY) or NO_REASON)
                    self.reasons.setdefault(name, Counter())[why] += 1
            self._of(COMBINED, response.source, group.domain).add(response.reward, response.verdict)

    def _of(self, scorer: str, source: str, domain: str) -> Counts:
        return self.counts.setdefault((scorer, source, domain), Counts())

    def plain(self) -> list[dict[str, Any]]:
        """For the manifest: a row a scorer, source and domain."""
        return [
            {"scorer": scorer, "source": source, "domain": domain, **counts.plain()}
            for (scorer, source, domain), counts in self._sorted()
        ]

    def table(self, scorers: Collection[str]) -> Table:
        """These scorers' rows."""
        table = Table(title="scores", title_justify="left")
        for column in ("scorer", "source", "domain"):
            table.add_column(column)
        for column in ("responses", "mean", "right", "wrong", "unknown", "without"):
            table.add_column(column, justify="right")
        for names, counts in self._sorted():
            if names[0] in scorers:
                cells = (f"{counts.responses:,}", _number(counts.mean), *_shares(counts))
                table.add_row(*(escape(name) for name in names), *cells)
        return table

    def reasons_told(self, scorers: Collection[str]) -> list[str]:
        """Lines: why these scorers have no number or no verdict, the most frequent first."""
        return [
            f"{scorer}: {count:,} x {why}"
            for scorer in sorted(self.reasons.keys() & set(scorers))
            for why, count in self.reasons[scorer].most_common(TOLD)
        ]

    def _sorted(self) -> list[tuple[tuple[str, str, str], Counts]]:
        """The combination last."""
        return sorted(self.counts.items(), key=lambda row: (row[0][0] == COMBINED, row[0]))

    def reasons_plain(self) -> Mapping[str, Mapping[str, int]]:
        """For the manifest."""
        return {scorer: dict(reasons.most_common()) for scorer, reasons in sorted(self.reasons.items())}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _shares(counts: Counts) -> list[str]:
    verified = bool(counts.verdicts)
    shares = [f"{counts.verdicts[v] / counts.responses:.1%}" if verified else "" for v in ("right", "wrong", "unknown")]
    return [*shares, f"{counts.without:,}" if counts.without else ""]

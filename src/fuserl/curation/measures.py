"""What a clean data set looks like: rewards, lengths, who owns the best response, how far apart samples are."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fuserl.curation.pairs import by_source, reward_at, scored
from fuserl.records.schema import PromptGroup, Response

BINS = 40
TAUS = (0.005, 0.01, 0.05, 0.1, 1.0)  # reward units; papers leave FuseSFT's temperature open


class Measures:
    """Gathers numbers group by group, eight bytes each."""

    def __init__(self) -> None:
        self.rewards: dict[str, dict[str, array]] = defaultdict(
            lambda: defaultdict(lambda: array("d"))
        )  # domain, source
        self.characters: dict[str, array] = defaultdict(lambda: array("i"))
        self.tokens: dict[str, array] = defaultdict(lambda: array("i"))  # where the engine counted them
        self.gaps: dict[str, array] = defaultdict(lambda: array("d"))  # by domain: a source's best less its worst
        self.wins: Counter[tuple[str, str]] = Counter()  # (domain, source) -> prompts whose best it owns, ties shared
        self.verdicts: Counter[tuple[str, str, str]] = Counter()  # (domain, source, verdict)

    def add(self, group: PromptGroup) -> None:
        """One group."""
        for response in group.responses:
            self.characters[response.source].append(len(response.text))
            tokens = tokens_of(response)
            if tokens is not None:
                self.tokens[response.source].append(tokens)
            if response.reward is not None:
                self.rewards[group.domain][response.source].append(response.reward)
            if response.verdict is not None:
                self.verdicts[group.domain, response.source, response.verdict] += 1
        best: dict[str, float] = {}
        for source, places in by_source(group).items():
            rewards = [reward_at(group, place) for place in scored(group, places)]
            if rewards:
                best[source] = max(rewards)
            if len(rewards) > 1:
                self.gaps[group.domain].append(max(rewards) - min(rewards))
        owners = [source for source, reward in best.items() if reward == max(best.values())]
        for source in owners:
            self.wins[group.domain, source] += 1 / len(owners)  # type: ignore[assignment]

    def plain(self) -> dict[str, Any]:
        """For the report."""
        return {
            "rewards": {domain: histograms(of_domain) for domain, of_domain in sorted(self.rewards.items())},
            "gaps": {domain: histograms({"all": found}) for domain, found in sorted(self.gaps.items())},
            "characters": {source: spread(values) for source, values in sorted(self.characters.items())},
            "tokens": {source: spread(values) for source, values in sorted(self.tokens.items())},
            "win_share": shares(self.wins),
            "verdicts": [[*key, number] for key, number in sorted(self.verdicts.items())],
        }


class Entropies:
    """How even softmax(reward / τ) would weigh the pooled responses of a prompt, for several τ."""

    def __init__(self) -> None:
        self.sums, self.prompts, self.ranges = dict.fromkeys(TAUS, 0.0), 0, array("d")

    def add(self, rewards: Iterable[float]) -> None:
        """The rewards of one prompt's pool; one response weighs 1 whatever τ is, and is not counted."""
        values = np.array(list(rewards))
        if len(values) < 2:
            return
        self.prompts += 1
        self.ranges.append(float(values.max() - values.min()))
        for tau in TAUS:
            weights = np.exp((values - values.max()) / tau)
            weights /= weights.sum()
            held = weights[weights > 0]
            self.sums[tau] += float(-(held * np.log(held)).sum() / np.log(len(values)))

    def plain(self) -> dict[str, Any] | None:
        """Means over prompts, 0 (one response alone) to 1 (all weigh the same); None where no prompt has a pool."""
        if not self.prompts:
            return None
        means = {str(tau): round(total / self.prompts, 4) for tau, total in self.sums.items()}
        return {"prompts": self.prompts, "median_range": round(float(np.median(self.ranges)), 6), "entropy": means}


def tokens_of(response: Response) -> int | None:
    """Tokens of a response, as the engine that wrote it counted them."""
    number = response.extra.get("response_tokens")
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def histograms(values: Mapping[str, array]) -> dict[str, Any]:
    """One scale for all: {"edges": [BINS + 1], "counts": {name: [BINS]}, "mean": {name: number}}; empty without values."""
    there = {name: np.frombuffer(found) for name, found in sorted(values.items()) if len(found)}
    if not there:
        return {}
    low, high = min(found.min() for found in there.values()), max(found.max() for found in there.values())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return {
        "edges": edges.tolist(),
        "counts": {name: np.histogram(found, edges)[0].tolist() for name, found in there.items()},
        "mean": {name: float(found.mean()) for name, found in there.items()},
    }


def spread(values: array) -> dict[str, float]:
    """Mean, median, 95th hundredth and largest."""
    found = np.frombuffer(values, dtype=np.int32)
    return {
        "mean": round(float(found.mean()), 1),
        "median": float(np.median(found)),
        "95%": float(np.quantile(found, 0.95)),
        "max": int(found.max()),
    }


def shares(wins: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Domain -> source -> share of the prompts whose best response it owns; they sum to 1."""
    totals: dict[str, float] = defaultdict(float)
    for (domain, _), number in wins.items():
        totals[domain] += number
    found: dict[str, dict[str, float]] = {}
    for (domain, source), number in sorted(wins.items()):
        found.setdefault(domain, {})[source] = round(number / totals[domain], 6)
    return found

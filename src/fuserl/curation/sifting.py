"""Running the rules, in their order, over a stored data set: who goes, why, and how many.

The data set itself is not changed. What each rule drops is listed in a file, and what the rules before have listed is
left out of what the next one sees. A run that was killed reads the lists of the rules that were done.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuserl.curation.limits import GroupRule
from fuserl.curation.rules import CorpusRule, Dropped, ResponseRule, sifted
from fuserl.curation.texts import excerpt, prompt_text
from fuserl.records.manifest import read_manifest, write_text_atomically, written_atomically
from fuserl.records.schema import PromptGroup
from fuserl.records.splits import unit
from fuserl.records.store import iter_groups
from fuserl.terminal import bar, say

EXAMPLES = 5  # of what each rule dropped, for the report
SIGNS = 400  # of an example's text


@dataclass(frozen=True)
class Step:
    """A rule as it is configured."""

    name: str  # key in `rules`, under which it counts
    domains: frozenset[str] | None  # None: all
    rule: ResponseRule | CorpusRule

    @property
    def reads_all(self) -> bool:
        """Whether it must read everything before it can judge."""
        return isinstance(self.rule, CorpusRule) and not isinstance(self.rule, GroupRule)

    def judges(self, domain: str) -> bool:
        """Whether the rule is for this domain."""
        return self.domains is None or domain in self.domains


@dataclass
class Counts:
    """What one rule dropped."""

    prompts: Counter[str] = field(default_factory=Counter)  # by domain
    responses: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (domain, source), for a reason of theirs
    with_prompt: Counter[tuple[str, str]] = field(default_factory=Counter)  # because their prompt went


@dataclass
class Sifted:
    """What the rules have said."""

    gone: set[str] = field(default_factory=set)  # ids of prompts
    fewer: dict[str, set[tuple[str, int]]] = field(default_factory=dict)  # id -> (source, sample) that went
    counts: dict[str, Counts] = field(default_factory=dict)  # rule -> its drops, in order
    findings: dict[str, dict[str, list]] = field(default_factory=dict)  # rule -> its tables
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # rule -> some of what it dropped

    def left_of(self, group: PromptGroup) -> PromptGroup | None:
        """What no rule has dropped."""
        if group.id in self.gone:
            return None
        without = self.fewer.get(group.id)
        if without is None:
            return group
        return replace(group, responses=tuple(r for r in group.responses if (r.source, r.sample) not in without))

    def without(self, prompt_id: str, source: str | None, sample: int | None) -> None:
        """Leave out one more thing that was dropped."""
        if source is None or sample is None:
            self.gone.add(prompt_id)
            self.fewer.pop(prompt_id, None)
        else:
            self.fewer.setdefault(prompt_id, set()).add((source, sample))


@dataclass(frozen=True)
class Left:
    """The groups of a folder, less what was dropped so far; read anew each time."""

    folder: Path
    sifted: Sifted
    judged: Callable[[str], bool] = lambda domain: True

    def __iter__(self) -> Iterator[PromptGroup]:
        for group in iter_groups(self.folder):
            left = self.sifted.left_of(group)
            if left is not None and self.judged(group.domain):
                yield left


def sift(steps: Sequence[Step], folder: Path, lists: Path) -> Sifted:
    """Ask all rules.

    Args:
        folder: the data set.
        lists: where what was dropped is listed, a file a pass.
    """
    sifted_so_far = Sifted()
    lists.mkdir(parents=True, exist_ok=True)
    for number, together in enumerate(passes(steps)):
        path = lists / f"{number:02d}.json"
        if not path.exists():
            _run(together, Left(folder, sifted_so_far), lists / f"{number:02d}", path)
        _take(json.loads(path.read_text(encoding="utf-8")), lists / f"{number:02d}.jsonl", sifted_so_far)
    return sifted_so_far


def passes(steps: Sequence[Step]) -> list[list[Step]]:
    """Rules that can be asked while the data is read once: a new pass begins before every rule that must read it all."""
    found: list[list[Step]] = []
    for step in steps:
        if not found or step.reads_all:
            found.append([])
        found[-1].append(step)
    return found


def _run(steps: list[Step], left: Left, name: Path, done: Path) -> None:
    """One pass: what was dropped goes to `name.jsonl`, the summary last to `done`."""
    first, findings = steps[0], {}
    if first.reads_all:
        first.rule.fit(replace(left, judged=first.judges))  # type: ignore[union-attr]
        findings = first.rule.findings()  # type: ignore[union-attr]
        path = name.with_name(f"{name.name}.findings.json")
        write_text_atomically(path, json.dumps(findings, default=str))
        say(
            f"rule {first.name}: {', '.join(f'{len(rows)} rows of {what}' for what, rows in findings.items())}; see {path}"
        )
    counts, examples = {step.name: Counts() for step in steps}, {step.name: Examples() for step in steps}
    total = read_manifest(left.folder).groups
    with written_atomically(name.with_suffix(".jsonl")) as file, bar("applying rules", lambda: total) as told:
        for seen, group in enumerate(left):
            for step, before, dropped in _asked(steps, group):
                _count(counts[step.name], before, dropped)
                for one in dropped:
                    file.write(
                        json.dumps([step.name, one.prompt_id, before.domain, one.source, one.sample, one.why]) + "\n"
                    )
                    examples[step.name].add(before, one)
            told(seen + 1)
    summary = {
        "rules": [
            [step.name, *(_rows(table) for table in vars(counts[step.name]).values()), examples[step.name].some()]
            for step in steps
        ],
        "findings": {first.name: findings} if findings else {},
    }
    write_text_atomically(done, json.dumps(summary, default=str))


def _asked(steps: list[Step], group: PromptGroup) -> Iterator[tuple[Step, PromptGroup, list[Dropped]]]:
    """(rule, the group as it saw it, what it dropped) of every rule that dropped something."""
    for step in steps:
        if step.judges(group.domain):
            left, dropped = sifted(step.rule, group)
            if dropped:
                yield step, group, dropped
            if left is None:
                return
            group = left


def _count(counts: Counts, group: PromptGroup, dropped: list[Dropped]) -> None:
    for one in dropped:
        if one.source is not None:
            counts.responses[group.domain, one.source] += 1
    if any(one.source is None for one in dropped):
        counts.prompts[group.domain] += 1
        judged = {(one.source, one.sample) for one in dropped}
        others = [r.source for r in group.responses if (r.source, r.sample) not in judged]
        counts.with_prompt.update((group.domain, source) for source in others)


def _take(summary: dict[str, Any], listed: Path, to: Sifted) -> None:
    """Remember what a pass has said."""
    for name, prompts, responses, with_prompt, examples in summary["rules"]:
        to.counts[name] = Counts(
            Counter(dict(prompts)),
            *(Counter({(domain, source): n for domain, source, n in table}) for table in (responses, with_prompt)),
        )
        to.examples[name] = examples
    to.findings |= summary["findings"]
    with listed.open(encoding="utf-8") as file:
        for line in file:
            _, prompt_id, _, source, sample, _ = json.loads(line)
            to.without(prompt_id, source, sample)


def _rows(table: Counter) -> list[list[Any]]:
    return [[*(key if isinstance(key, tuple) else (key,)), number] for key, number in sorted(table.items())]


class Examples:
    """Some of what was dropped, the same whatever came first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str, dict[str, Any]]] = []  # smallest hashes, largest on top

    def add(self, group: PromptGroup, dropped: Dropped) -> None:
        """One more candidate."""
        key = f"{dropped.prompt_id} {dropped.source} {dropped.sample}"
        rank = -unit(key, "example")
        if len(self._heap) == EXAMPLES and rank <= self._heap[0][0]:
            return
        place = (dropped.source, dropped.sample)
        text = next((r.text for r in group.responses if (r.source, r.sample) == place), None)
        entry = {
            "prompt_id": dropped.prompt_id,
            "domain": group.domain,
            "source": dropped.source,
            "sample": dropped.sample,
            "why": excerpt(dropped.why, SIGNS),
            "prompt": excerpt(prompt_text(group), SIGNS),
            "text": None if text is None else excerpt(text, SIGNS),
        }
        heapq.heappush(self._heap, (rank, key, entry))
        if len(self._heap) > EXAMPLES:
            heapq.heappop(self._heap)

    def some(self) -> list[dict[str, Any]]:
        """Those that are shown."""
        return [entry for _, _, entry in sorted(self._heap, key=lambda item: (-item[0], item[1]))]

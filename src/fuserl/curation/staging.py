"""From clean groups to four piles: SFT and preferences, trained on and held out, each as its protocol keeps them.

One pass over the data; the piles lie on disk, and what they hold is counted on the way.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuserl.curation.keep import Kept
from fuserl.curation.lines import to_line
from fuserl.curation.measures import Entropies, Measures
from fuserl.curation.planned import Planned
from fuserl.curation.sifting import Left
from fuserl.curation.split import SIDES, SPLITS, Splitting
from fuserl.records.manifest import read_manifest, write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.terminal import bar

PILES = tuple(f"{side}/{split}" for side in SIDES for split in SPLITS)


@dataclass
class Table:
    """Prompts by domain, responses by domain and source."""

    prompts: Counter[str] = field(default_factory=Counter)
    responses: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, group: PromptGroup) -> None:
        """One group."""
        self.prompts[group.domain] += 1
        self.responses.update((group.domain, response.source) for response in group.responses)

    def plain(self) -> dict[str, Any]:
        """As JSON: {"prompts": {domain: n}, "responses": {domain: {source: n}}}."""
        responses: dict[str, dict[str, int]] = {}
        for (domain, source), number in sorted(self.responses.items()):
            responses.setdefault(domain, {})[source] = number
        return {"prompts": dict(sorted(self.prompts.items())), "responses": responses}


@dataclass
class Pile:
    """What one side and split was given, and what it kept."""

    given: Table = field(default_factory=Table)
    kept: Table = field(default_factory=Table)
    why: Counter[tuple[str, str]] = field(default_factory=Counter)  # (domain, why the prompt went)
    no_pair: Counter[tuple[str, str]] = field(default_factory=Counter)  # (domain, why a source has no pair)
    num_pairs: Counter[str] = field(default_factory=Counter)  # by domain
    entropies: Entropies = field(default_factory=Entropies)

    def add(self, group: PromptGroup, kept: Kept) -> None:
        """One group with what its protocol keeps of it."""
        self.given.add(group)
        self.no_pair.update({(group.domain, why): number for why, number in kept.without.items()})
        if not kept.places:
            self.why[group.domain, str(kept.why)] += 1
            return
        self.kept.add(kept.of(group))
        rewards = [group.responses[place].reward for place in kept.places]
        if None not in rewards:
            self.entropies.add(rewards)  # type: ignore[arg-type]
        if kept.pairs:
            self.num_pairs[group.domain] += len(kept.pairs)

    def plain(self) -> dict[str, Any]:
        """For the report."""
        return {
            "given": self.given.plain(),
            "kept": self.kept.plain(),
            "dropped": [[domain, why, number] for (domain, why), number in sorted(self.why.items())],
            "no_pair": [[domain, why, number] for (domain, why), number in sorted(self.no_pair.items())],
            "num_pairs": dict(sorted(self.num_pairs.items())),
            "entropies": self.entropies.plain(),
        }


def stage(plan: Planned, left: Left, splitting: Splitting, folder: Path) -> dict[str, Any]:
    """Write the piles into `folder`, `sft/train` and so on, with `dropped.jsonl` beside them.

    Returns:
        What is clean, what became of it, and measures of it; from the folder itself where it is whole already.
    """
    done = folder / "staged.json"
    if not done.exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        for side in SIDES:
            (part / side).mkdir(parents=True)
        write_text_atomically(part / done.name, json.dumps(_pass(plan, left, splitting, part)))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return json.loads(done.read_text(encoding="utf-8"))


def _pass(plan: Planned, left: Left, splitting: Splitting, folder: Path) -> dict[str, Any]:
    clean, measures, piles = Table(), Measures(), {name: Pile() for name in PILES}
    total = read_manifest(left.folder).groups
    with ExitStack() as opened:
        files = {name: opened.enter_context((folder / name).open("w", encoding="utf-8")) for name in PILES}
        dropped = opened.enter_context((folder / "dropped.jsonl").open("w", encoding="utf-8"))
        told = opened.enter_context(bar("choosing responses", lambda: total))
        for seen, group in enumerate(left):
            clean.add(group)
            measures.add(group)
            deciding = splitting.deciding(group)
            side, split = splitting.side(deciding, plan.protocol(deciding.domain).sft_share)
            kept = _kept(plan, side, group)
            piles[f"{side}/{split}"].add(group, kept)
            if kept.places:
                files[f"{side}/{split}"].write(to_line(kept.of(group)) + "\n")
            else:
                row = [f"{side} protocol", group.id, group.domain, None, None, kept.why]
                dropped.write(json.dumps(row) + "\n")
            told(seen + 1)
    staged: Mapping[str, Any] = {name: pile.plain() for name, pile in piles.items()}
    return {"clean": clean.plain(), "measures": measures.plain(), "piles": staged, "together": len(splitting.together)}


def _kept(plan: Planned, side: str, group: PromptGroup) -> Kept:
    """What a side's protocol keeps. A prompt may stand with one of a domain that has both sides where its own has one."""
    protocol = plan.protocol(group.domain)
    keep = protocol.sft if side == "sft" else protocol.po
    return Kept(why=f"the domain has no protocol for {side}") if keep is None else keep(group)

"""Before anything is asked: reading all prompts once, and counting what the journals hold for them already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fuserl.errors import FuserlError
from fuserl.records.journal import Journal
from fuserl.records.manifest import canonical
from fuserl.records.schema import PromptGroup
from fuserl.records.splits import prompt_digest
from fuserl.sources.asked import Asked


@dataclass
class Survey:
    """What is to be done."""

    prompts: int = 0
    repeated: int = 0  # prompts that say what an earlier one says: they share its answers
    wanted: dict[str, int] = field(default_factory=dict)  # source -> requests of this command
    answered: dict[str, int] = field(default_factory=dict)  # of these, how many have an answer
    digest: str = ""  # of the prompts and all that is kept with them

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return sum(self.wanted.values()) - sum(self.answered.values())


def surveyed(
    prompts: Iterable[PromptGroup], asked: Iterable[Asked], journals: Mapping[str, Journal], told: Callable[[int], None]
) -> Survey:
    """Read the prompts through.

    Raises:
        FuserlError: a row is bad.
    """
    asked = list(asked)
    found = Survey(wanted={one.source.name: 0 for one in asked}, answered={one.source.name: 0 for one in asked})
    content, seen = hashlib.sha256(), set()
    for group in prompts:
        found.prompts += 1
        content.update(canonical(group))
        _require_other_names(group, found.wanted)
        told(found.prompts)
        digest = bytes.fromhex(prompt_digest(group.prompt))
        if digest in seen:
            found.repeated += 1
            continue
        seen.add(digest)
        for one in asked:
            name, keys = one.source.name, one.keys(group)
            found.wanted[name] += len(keys)
            found.answered[name] += sum(key in journals[name] for key in keys)
    found.digest = content.hexdigest()
    return found


def _require_other_names(group: PromptGroup, names: Collection[str]) -> None:
    """Raises: FuserlError: responses that came with the prompt are of a source that is asked."""
    if taken := sorted({response.source for response in group.responses} & set(names)):
        raise FuserlError(
            f"the data holds answers of `{taken[0]}` already, and a source of that name is asked",
            where=f"prompt `{group.id}`",
            hint=f"give the source another name (`sources.{taken[0]}.name=...`), or leave `data.keep_responses` false",
        )

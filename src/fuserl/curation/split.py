"""Which side a prompt belongs to: SFT or preferences, trained on or held out.

It is decided by hash with the functions of `data.part` and `data.validation_fraction`, so a prompt that resembles no
other stands where training would have put it. Prompts that say the same, or nearly so, stand together: where the one
with the smallest id belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from fuserl.curation.near import Near, Twins
from fuserl.records.manifest import read_manifest
from fuserl.records.schema import Message, PromptGroup
from fuserl.records.splits import in_part, prompt_digest, unit

HELD_OUT = "validation"  # the salt under which training holds prompts out
SIDES = ("sft", "po")
SPLITS = ("train", "validation")


class Prompt(NamedTuple):
    """What decides a side."""

    id: str
    digest: str
    domain: str


@dataclass(frozen=True)
class Splitting:
    """The side of every prompt."""

    together: Mapping[str, Prompt]  # id -> the prompt that decides for it, where that is another
    validation_fraction: float

    def deciding(self, group: PromptGroup) -> Prompt:
        """The prompt that decides where this one stands."""
        return self.together.get(group.id) or Prompt(group.id, prompt_digest(group.prompt), group.domain)

    def side(self, deciding: Prompt, sft_share: float) -> tuple[str, str]:
        """One of SIDES and one of SPLITS.

        Args:
            sft_share: of the domain of the prompt that decides.
        """
        held_out = unit(deciding.digest, HELD_OUT) < self.validation_fraction
        return SIDES[not in_part(deciding.id, 0.0, sft_share)], SPLITS[held_out]


def together(folder: Path, left: Callable[[str], bool], near: Near | None) -> dict[str, Prompt]:
    """Id -> the prompt that decides for it, of those that say what one with a smaller id says.

    Args:
        folder: the data set; only its prompts are read.
        left: whether a prompt counts, by id.
        near: when two prompts say nearly the same; None: equal ones stand together (`texts.normalised`), others do not.
    """
    twins = Twins(near, ((text, (prompt.id,), "") for prompt, text in prompts_of(folder) if left(prompt.id)))
    found: dict[str, str] = {}
    for prompt, text in prompts_of(folder):
        twin = twins.of(text, "") if left(prompt.id) else None
        if twin is not None and twin.kept != (prompt.id,):
            found[prompt.id] = str(twin.kept[0])
    wanted = set(found.values())
    deciding = {prompt.id: prompt for prompt, _ in prompts_of(folder) if prompt.id in wanted} if wanted else {}
    return {one: deciding[other] for one, other in found.items()}


def prompts_of(folder: Path) -> Iterator[tuple[Prompt, str]]:
    """The prompts of a data set with all that they say, without their responses."""
    for name in read_manifest(folder).files:
        with pq.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(1000, columns=["prompt_id", "prompt", "domain"]):
                for row in batch.to_pylist():
                    turns = [Message(turn["role"], turn["content"]) for turn in row["prompt"]]
                    text = "\n".join(turn.content for turn in turns)
                    yield Prompt(row["prompt_id"], prompt_digest(turns), row["domain"]), text

"""From a prompt to the requests that a source gets: its messages, a seed a sample, and the key of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fuserl.records.schema import Message, PromptGroup
from fuserl.records.splits import prompt_digest
from fuserl.sources.protocol import Request
from fuserl.sources.source import Source


def sample_seed(seed: int, prompt: str, source: str, sample: int) -> int:
    """The seed of one answer, in [0, 2**31): of the run's seed, the prompt's digest, the source's name, the sample.

    >>> sample_seed(0, "ab12", "gemma", 0) != sample_seed(0, "ab12", "gemma", 1)
    True
    """
    content = json.dumps([seed, prompt, source, sample])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 2**31


@dataclass(frozen=True)
class Asked:
    """All that a source is asked, prompt by prompt: the same prompt gets the same requests, wherever it stands."""

    source: Source
    seed: int

    def messages(self, prompt: Iterable[Message]) -> tuple[Message, ...]:
        """The conversation as the source gets it: with the source's system turn, where the prompt has none."""
        prompt = tuple(prompt)
        if not self.source.system or prompt[0].role == "system":
            return prompt
        return (Message("system", self.source.system), *prompt)

    def seeds(self, group: PromptGroup) -> list[int]:
        """One a sample."""
        digest = prompt_digest(group.prompt)
        return [
            sample_seed(self.seed, digest, self.source.name, sample)
            for sample in range(self.source.samples_of(group.domain))
        ]

    def keys(self, group: PromptGroup) -> list[str]:
        """`request_key` of every sample; what is the same for all of them is hashed once."""
        asked = [[message.role, message.content] for message in self.messages(group.prompt)]
        prompt = self._source_hash.copy()
        prompt.update(f"{json.dumps(asked)}, {self._sampling}, ".encode())
        keys = []
        for seed in self.seeds(group):
            sample = prompt.copy()
            sample.update(f"{seed}]".encode())
            keys.append(sample.hexdigest()[:32])
        return keys

    def requests(self, group: PromptGroup) -> Iterator[Request]:
        """Every sample's, in order."""
        messages = self.messages(group.prompt)
        for key, seed in zip(self.keys(group), self.seeds(group), strict=True):
            yield Request(key, messages, self.source.sampling, seed)

    @cached_property
    def _source_hash(self) -> Any:
        identity = json.dumps(self.source.identity(), sort_keys=True, default=str)
        return hashlib.sha256(f"[{identity}, ".encode())

    @cached_property
    def _sampling(self) -> str:
        return json.dumps(self.source.sampling.plain(), sort_keys=True, default=str)

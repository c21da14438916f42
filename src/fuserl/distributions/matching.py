"""FuseLLM's and FuseChat's three ways to carry a source's distribution over: EM, MinED, MS (arXiv:2402.16107 §3.3).

Each has two halves that belong together: which target token a source token becomes, and which source position, if any,
gives a target position its distribution.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fuserl.distributions.alignment import Alignment, Ids
from fuserl.distributions.mapping import (
    Chosen,
    choose_equal,
    choose_spelled,
    same_text,
    same_text_or_mapped,
)
from fuserl.distributions.marks import Vocabulary
from fuserl.distributions.vocabulary import Map, cached, exact, map_tokens, min_edit, statistics_map

Matches = Int[np.ndarray, "pairs 3"]  # (target token, source token, count), of `vocabulary.Together`


@runtime_checkable
class Matching(Protocol):
    """See `ExactMatch`, `MinEditDistance`, `MappingStatistics`."""

    reads_matches: bool  # whether the vocabulary map depends on what was aligned with what

    def to_target(self, source: Vocabulary, target: Vocabulary, matches: Matches, cache: Path) -> Map:
        """Target token of every source token, -1 where there is none. `matches` are empty where they are not read."""
        ...

    def choose(
        self, alignment: Alignment, source: Ids, target: Ids, vocabularies: tuple[Vocabulary, Vocabulary], g: Map
    ) -> Chosen:
        """A source position of every target position, GOLD or OWN."""
        ...


class ExactMatch:
    """EM, `hard` in the released code: equal texts, one to one."""

    reads_matches = False

    def to_target(self, source: Vocabulary, target: Vocabulary, matches: Matches, cache: Path) -> Map:
        """See `Matching`."""
        return cached(cache, "exact", source, target, lambda: map_tokens(source, target, exact))

    def choose(
        self, alignment: Alignment, source: Ids, target: Ids, vocabularies: tuple[Vocabulary, Vocabulary], g: Map
    ) -> Chosen:
        """See `mapping.choose_equal`."""
        return choose_equal(alignment, source, target, same_text(*_texts(vocabularies)))


class MinEditDistance:
    """MinED, `soft`: FuseLLM's. Tokens without an equal one go to the nearest of the whole vocabulary."""

    reads_matches = False

    def to_target(self, source: Vocabulary, target: Vocabulary, matches: Matches, cache: Path) -> Map:
        """See `Matching`."""
        return cached(cache, "min_edit", source, target, lambda: map_tokens(source, target, min_edit))

    def choose(
        self, alignment: Alignment, source: Ids, target: Ids, vocabularies: tuple[Vocabulary, Vocabulary], g: Map
    ) -> Chosen:
        """See `mapping.choose_equal`."""
        return choose_equal(alignment, source, target, same_text_or_mapped(*_texts(vocabularies), g))


class MappingStatistics:
    """MS: FuseChat's. Tokens without an equal one go where they were aligned to in these texts, several may spell one."""

    reads_matches = True

    def to_target(self, source: Vocabulary, target: Vocabulary, matches: Matches, cache: Path) -> Map:
        """See `Matching`."""
        counted = hashlib.sha256(np.ascontiguousarray(matches).tobytes()).hexdigest()[:24]
        g = cached(cache, f"statistics {counted}", source, target, lambda: statistics_map(source, target, matches))
        equal = cached(cache, "exact", source, target, lambda: map_tokens(source, target, exact))
        return np.where(equal >= 0, equal, g).astype(np.int32)

    def choose(
        self, alignment: Alignment, source: Ids, target: Ids, vocabularies: tuple[Vocabulary, Vocabulary], g: Map
    ) -> Chosen:
        """See `mapping.choose_spelled`."""
        return choose_spelled(alignment, source, target, *_texts(vocabularies))


def _texts(vocabularies: tuple[Vocabulary, Vocabulary]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return vocabularies[0].texts, vocabularies[1].texts

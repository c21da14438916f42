"""All texts aligned between two tokenizers, kept in shards: a killed run continues, another method finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fuserl.distributions.aligners import Aligner, Pair
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.kept import keep, recalled
from fuserl.distributions.readers import Reader
from fuserl.distributions.texts import Place, Texts
from fuserl.terminal import bar

LAYOUT = 1  # raise it when an aligner aligns otherwise
SHARD = 512  # texts


@dataclass(frozen=True)
class Aligned:
    """A source's texts against the target's."""

    source: Reader
    target: Reader
    aligner: Aligner
    texts: Texts
    cache: Path

    def pair(self, place: Place) -> Pair:
        """A text in both tokenisations."""
        where = place.row, place.column, self.aligner.scope
        return Pair(self.source.sequence(*where), self.target.sequence(*where), place.text)

    def each(self, *, progress_bar: bool = False) -> Iterator[tuple[Pair, Alignment]]:
        """Every text with its alignment, in order; shards that are missing are computed.

        Raises:
            FuserlError: a shard cannot be written.
        """
        folder, number, done, places = self.cache / "alignments" / self._name(), 0, 0, self.texts.places()
        with bar(f"aligning {self.source.model.name}", lambda: len(self.texts), show=progress_bar) as told:
            while shard := list(islice(places, SHARD)):
                pairs = [self.pair(place) for place in shard]
                yield from zip(pairs, self._shard(folder / f"{number:06d}.npy", pairs), strict=True)
                number, done = number + 1, done + len(shard)
                told(done)

    def _shard(self, path: Path, pairs: Sequence[Pair]) -> list[Alignment]:
        lengths = [len(pair.target.ids) for pair in pairs]
        known = recalled(path)
        if known is None or known.shape != (sum(lengths), 2) or known.dtype != np.int32:
            found = self.aligner.align(pairs, self.source.vocabulary, self.target.vocabulary)
            known = np.concatenate([np.stack([one.first, one.last], axis=1) for one in found]).astype(np.int32)
            keep(path, known, "alignments")
        parts = np.split(known, np.cumsum(lengths)[:-1])
        return [
            Alignment(part[:, 0], part[:, 1], len(pair.source.ids)) for part, pair in zip(parts, pairs, strict=True)
        ]

    def _name(self) -> str:
        """Of all that decides the alignments, and the order of the texts."""
        sides = [[one.store.digest, one.vocabulary.digest] for one in (self.source, self.target)]
        how = [type(self.aligner).__name__, self.aligner.scope]
        places = list(self.texts.place_of.items())
        return hashlib.sha256(json.dumps([LAYOUT, SHARD, how, sides, places]).encode()).hexdigest()[:24]

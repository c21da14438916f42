"""All texts aligned between two tokenizers, kept in shards: a killed run continues, another method finds them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fuserl.distributions.aligners import Aligner, Pair
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.readers import Reader
from fuserl.distributions.texts import Place, Texts
from fuserl.errors import FuserlError
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
        known = _load(path, sum(lengths))
        if known is None:
            found = self.aligner.align(pairs, self.source.vocabulary, self.target.vocabulary)
            known = np.concatenate([np.stack([one.first, one.last], axis=1) for one in found]).astype(np.int32)
            _save(path, known)
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


def _load(path: Path, tokens: int) -> np.ndarray | None:
    """None where there is no shard, or a damaged one."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (tokens, 2) and found.dtype == np.int32 else None


def _save(path: Path, shard: np.ndarray) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, shard, allow_pickle=False)
        part.replace(path)
    except OSError as error:
        raise FuserlError(
            f"the alignments cannot be kept: {error.strerror or error}",
            where=str(path),
            hint="make room, or give another `cache`; what was aligned is kept",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)

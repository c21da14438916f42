"""Fused stores are written: text by text, what all models expect of it, in one pass over the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.fusing import (
    Blend,
    Bring,
    Carried,
    Criterion,
    Rows,
    Same,
    blended,
    compared,
    own_rows,
    stored,
    weights_of,
)
from fuserl.distributions.store import Distributions, Sample
from fuserl.distributions.texts import Place, Texts
from fuserl.distributions.topk import TopK
from fuserl.terminal import bar


@dataclass(frozen=True)
class Fusion:
    """How models become one.

    Args:
        names: of the models, the target's first.
        read: what each of them expects, in its own tokens.
        sources: the same of all but the target, with what brings it into the target's vocabulary.
    """

    names: Sequence[str]
    read: Sequence[Distributions]
    sources: Sequence[Carried | Same]
    blend: Blend
    criterion: Criterion

    def write(self, texts: Texts, writers: Mapping[str, DistributionsWriter], *, progress_bar: bool) -> None:
        """Every text that a store lacks.

        Args:
            writers: by name; that of a source takes the target and this source, any other takes all models.

        Raises:
            FuserlError: the disk is full.
        """
        streams = zip(texts.places(), *(one.each() for one in self.sources), strict=True)
        with bar("fusing", lambda: len(texts), show=progress_bar) as told:
            for done, (place, *bring) in enumerate(streams):
                key = texts.key_of[place.row, place.column]
                if lacking := [name for name, writer in writers.items() if key not in writer]:
                    text = _Text(key, place, [store[key] for store in self.read], bring)
                    for name in lacking:
                        self._add(writers[name], text, self.members(name))
                told(done + 1)

    def members(self, name: str) -> list[int]:
        """Models that give into a fused store, by place; the target, 0, is one of them."""
        return [0, self.names.index(name)] if name in self.names else list(range(len(self.names)))

    def _add(self, writer: DistributionsWriter, text: _Text, members: Sequence[int]) -> None:
        target, size = text.samples[0], len(text.place.text.encode())
        ces = [compared(text.samples[member], size, self.criterion) for member in members]
        # what the target cannot read, FuseChat leaves out
        weights = [0.0] * len(members) if target.notes["nats"] is None else weights_of(ces, self.blend)
        own, origins, rows = own_rows(target), {}, []
        for member, weight in zip(members, weights, strict=True):
            counts: Counter[str] = Counter()
            rows.append(text.bring[member - 1](text.key, own, counts) if weight and member else own)
            if counts:
                origins[self.names[member]] = dict(counts)
        given = {self.names[member]: weight for member, weight in zip(members, weights, strict=True) if weight}
        fused = blended(rows, weights) if given else _nothing(len(own.top))
        writer.add(text.key, stored(fused), ce=target.ce, tail=fused.tail, notes={"weights": given, "origins": origins})


@dataclass(frozen=True)
class _Text:
    """One text, as all models read it."""

    key: str
    place: Place
    samples: Sequence[Sample]  # the target's first
    bring: Sequence[Bring]  # of each source


def _nothing(num_rows: int) -> Rows:
    return Rows(TopK(np.full((num_rows, 1), -1), np.full((num_rows, 1), -np.inf)), np.zeros(num_rows))

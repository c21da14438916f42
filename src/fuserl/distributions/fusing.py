"""From what each model expects in its own tokens to one distribution a position in the target's: text by text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fuserl.distributions.aligned import Aligned
from fuserl.distributions.aligners import Pair
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.blend import bits_per_byte, mixed
from fuserl.distributions.mapping import GOLD, OWN, Chosen, map_rows
from fuserl.distributions.matching import Matching
from fuserl.distributions.readers import Reader
from fuserl.distributions.store import Distributions, Sample
from fuserl.distributions.texts import Texts
from fuserl.distributions.topk import Combine, TopK, merged
from fuserl.distributions.vocabulary import Map

Criterion = Callable[[float, int, int], float]  # (nats, tokens, bytes) of a response -> what models are compared by


@runtime_checkable
class Blend(Protocol):
    """See `blend.MinCE` and `blend.AvgCE`."""

    def weights(self, ces: Sequence[float]) -> list[float]:
        """Of models that are compared by these numbers, the target's first."""
        ...

    def num_mixed(self, num_models: int) -> int:
        """How many models' tokens may stand in one row."""
        ...


class Rows(NamedTuple):
    """Distributions in the target's vocabulary, one row a trained token."""

    top: TopK  # what is kept sums to 1
    tail: Float[np.ndarray, " rows"]  # log of the probability that is not kept


def nats_per_token(nats: float, num_tokens: int, num_bytes: int) -> float:
    """Mean over the response's tokens, each model by its own: the papers' (FuseChat's `metric_ce`)."""
    return nats / num_tokens


def bits_a_byte(nats: float, num_tokens: int, num_bytes: int) -> float:
    """Comparable between tokenizers; a response without text is compared by its nats."""
    return bits_per_byte(nats, max(1, num_bytes))


Bring = Callable[[str, Rows, Counter[str]], Rows]  # (key, the target's own rows, counts of where rows come from)


@dataclass(frozen=True)
class Carried:
    """A source, with everything that brings its distributions into the target's vocabulary."""

    aligned: Aligned
    read: Distributions
    matching: Matching
    combine: Combine
    to_target: Map

    def each(self) -> Iterator[Bring]:
        """For every text what brings its distributions."""
        for pair, alignment in self.aligned.each():
            yield partial(self._rows, pair, alignment)

    def _rows(self, pair: Pair, alignment: Alignment, key: str, own: Rows, counts: Counter[str]) -> Rows:
        size, first = len(own.top), pair.target.start
        here = slice(first, first + size)
        part = Alignment(alignment.first[here], alignment.last[here], alignment.num_source)
        steps, both = self.read[key], (self.aligned.source.vocabulary, self.aligned.target.vocabulary)
        chosen = self.matching.choose(part, pair.source.ids, pair.target.ids[here], both, self.to_target)
        chosen = _within(chosen, pair.source.start, len(steps.rows))
        counts.update(copied=int((chosen >= 0).sum()), gold=int((chosen == GOLD).sum()), own=int((chosen == OWN).sum()))
        labels = pair.target.ids[first + 1 : first + 1 + size]
        return moved(steps.top_k(), chosen, self.to_target, labels, own, self.combine)


@dataclass(frozen=True)
class Same:
    """A source that reads the same tokens as the target: nothing is aligned, nothing mapped."""

    read: Distributions

    def each(self) -> Iterator[Bring]:
        """For every text what brings its distributions."""
        return repeat(self._rows, len(self.read))

    def _rows(self, key: str, own: Rows, counts: Counter[str]) -> Rows:
        counts.update(copied=len(own.top))
        return own_rows(self.read[key])


def same_tokens(source: Reader, target: Reader, texts: Texts) -> bool:
    """Whether both models read the very same tokens, so that nothing has to be aligned.

    Equal vocabularies are not enough: two tokenizers may cut a text in other places.
    """
    if source.vocabulary.digest != target.vocabulary.digest:
        return False
    used = texts.used & np.asarray(target.store.valid)
    return bool(np.array_equal(np.asarray(source.store.keys)[used], np.asarray(target.store.keys)[used]))


def own_rows(sample: Sample) -> Rows:
    """A model's distributions as it read them."""
    return Rows(sample.top_k().renormalised(), sample.tail.astype(np.float64))


def moved(steps: TopK, chosen: Chosen, to_target: Map, labels: np.ndarray, own: Rows, combine: Combine) -> Rows:
    """Like `map_rows`, with the mass that is not kept: a source's where it was copied, the target's own, or none.

    What a source expects of tokens that the target does not have is not kept.
    """
    top = map_rows(steps, chosen, to_target, labels, own.top, combine=combine)
    tail = own.tail.copy()
    tail[(chosen == GOLD) & (labels >= 0)] = -np.inf
    copied = np.flatnonzero(chosen >= 0)
    picked = steps.take(chosen[copied])
    ids = np.where(picked.ids >= 0, to_target[picked.ids], -1)
    there = (ids >= 0).any(axis=1)
    mass = merged(ids, picked.probs, combine).probs.sum(axis=1)
    with np.errstate(divide="ignore"):
        tail[copied[there]] = np.log(np.clip(1.0 - mass[there], 0.0, 1.0))
    return Rows(top, tail)


def blended(rows: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """The weighted mean of what is kept, and of what is not."""
    shares = np.array([weight for weight in weights if weight])
    tails = np.stack([one.tail for one, weight in zip(rows, weights, strict=True) if weight])
    with np.errstate(divide="ignore"):
        tail = np.log((shares[:, None] * np.exp(tails)).sum(axis=0))
    return Rows(mixed([one.top for one in rows], weights), tail)


def stored(rows: Rows) -> TopK:
    """Log-probs as they are kept: with the tail they sum to 1; the likeliest first."""
    kept = np.log1p(-np.exp(np.minimum(rows.tail, -1e-12)))
    logps = np.where(rows.top.ids >= 0, rows.top.logps + kept[:, None], -np.inf)
    order = np.argsort(-logps, axis=1, kind="stable")
    return TopK(np.take_along_axis(rows.top.ids, order, axis=1), np.take_along_axis(logps, order, axis=1))


def compared(sample: Sample, num_bytes: int, criterion: Criterion) -> float:
    """What a model is compared by on a text; NaN where it could not read it."""
    nats = sample.notes["nats"]
    return math.nan if nats is None or not len(sample.rows) else criterion(float(nats), len(sample.rows), num_bytes)


def weights_of(ces: Sequence[float], blend: Blend) -> list[float]:
    """Of the models that could read the text; those that could not have none."""
    able = [place for place, ce in enumerate(ces) if math.isfinite(ce)]
    if not able:
        return [0.0] * len(ces)
    found = [0.0] * len(ces)
    for place, weight in zip(able, blend.weights([ces[place] for place in able]), strict=True):
        found[place] = weight
    return found


def _within(chosen: Chosen, start: int, count: int) -> Chosen:
    """Positions as rows of what was read. What a source was not asked about, its prompt and its end, is gold."""
    rows = np.where(chosen >= 0, chosen - start, chosen)
    return np.where((chosen >= 0) & ((rows < 0) | (rows >= count)), GOLD, rows)

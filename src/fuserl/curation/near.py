"""Which texts of a stream are the same or nearly so, and which of them stays.

Exactly the same are texts with one normalised form. Nearly the same are those whose runs of words have a Jaccard
similarity of at least the threshold; MinHash finds candidates, every candidate is verified on the runs themselves, so
nothing is dropped for a false alarm. Of texts that are linked, over others too, the one with the smallest key stays,
so the order of the stream is no matter. Memory grows by some 500 bytes a text; the runs lie on disk.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64

from fuserl.curation.minhash import Clusters, band_keys, bands_for, buckets, jaccard
from fuserl.curation.shingles import Hashes, Places, Runs, Spool, batches, hashed_words, runs
from fuserl.curation.texts import digest, normalised
from fuserl.errors import FuserlError

Key = tuple[Any, ...]
BLOCK = 1 << 20  # runs of words read from disk together
FAILURES = 64  # comparisons of a text that may fail; a text with more alike but different ones is compared no further
SAMPLED = 1 << 22  # runs of words among which boilerplate is counted, those of some 10,000 answers
COMMON = 20  # texts that a run must stand in at least to be boilerplate


@dataclass(frozen=True)
class Near:
    """When two texts are nearly the same. The fields and their reasons are those of `near` in `conf/rule/`."""

    threshold: float
    ngram: int
    same_numbers: bool
    boilerplate: float | None
    num_perm: int
    recall: float
    scratch: str | None

    def __post_init__(self) -> None:
        fits = {
            "threshold": 0 < self.threshold <= 1,
            "ngram": self.ngram >= 1,
            "num_perm": self.num_perm >= 1,
            "recall": 0 < self.recall < 1,
            "boilerplate": self.boilerplate is None or 0 < self.boilerplate < 1,
        }
        for name, right in fits.items():
            if not right:
                raise FuserlError(
                    f"`{name}` is {getattr(self, name)!r}",
                    where="a rule for near duplicates",
                    hint="`threshold` is above 0 and at most 1, `recall` and `boilerplate` between 0 and 1, counts at least 1",
                )
        bands_for(self.threshold, self.num_perm, self.recall)


class Twin(NamedTuple):
    """What became of a text that has others like it."""

    kept: Key  # of the text that stays
    similarity: float  # Jaccard, with the text that stays; 1 for the same text


class Twins:
    """The texts of a stream that have others like them.

    Args:
        near: when texts are nearly the same; None: only what is exactly the same is found.
        texts: (text, its key, its space); no two have one key, and texts of different spaces are never compared.

    Raises:
        FuserlError: the folder for what is kept on disk cannot be written.
    """

    def __init__(self, near: Near | None, texts: Iterable[tuple[str, Key, str]]) -> None:
        self.counts: Counter[str] = Counter()
        self._found: dict[bytes, Twin] = {}
        self._members: dict[Key, list[Key]] = {}  # key that stays -> all of its cluster
        corpus = _Corpus(near)
        try:
            self.counts["texts"] = corpus.read(texts)
            self.counts["near duplicates"] = 0
            self.counts["different texts"] = len(corpus.keys)
            self._settle(corpus, corpus.clusters(self.counts) if near else Clusters(len(corpus.keys)))
        finally:
            corpus.spool.close()

    def of(self, text: str, space: str) -> Twin | None:
        """What became of a text; None: there is no other like it."""
        return self._found.get(digest(normalised(text), space))

    def clusters(self) -> list[list[Key]]:
        """Keys of texts that belong together, two or more each, in their order."""
        return sorted(sorted(members) for members in self._members.values())

    def _settle(self, corpus: _Corpus, clusters: Clusters) -> None:
        """The smallest key of each cluster stays."""
        first: dict[int, int] = {}  # root -> the text that stays
        for text, key in enumerate(corpus.keys):
            root = clusters.root(text)
            if root not in first or key < corpus.keys[first[root]]:
                first[root] = text
        for text, name in enumerate(corpus.texts):
            kept = first[clusters.root(text)]
            if kept != text:
                self._found[name] = Twin(corpus.keys[kept], corpus.similarity(text, kept))
                self.counts["near duplicates"] += 1
            elif text in corpus.repeated:
                self._found[name] = Twin(corpus.keys[text], 1.0)
            if kept != text or text in corpus.repeated:
                self._members.setdefault(corpus.keys[kept], []).extend(corpus.repeated.get(text, [corpus.keys[text]]))
        for kept, members in self._members.items():
            members.extend({kept} - {*members})


class _Corpus:
    """The different texts of a stream, by number."""

    def __init__(self, near: Near | None) -> None:
        self.near = near
        self.spool = Spool(near.scratch if near else None)
        self.texts: dict[bytes, int] = {}  # digest -> number
        self.keys: list[Key] = []  # the smallest of each text
        self.repeated: dict[int, list[Key]] = {}  # those that came with several keys
        self.numbers, self.spaces = array("Q"), array("Q")
        self.boilerplate: Hashes = np.empty(0, np.uint64)
        self.members = lru_cache(1 << 9)(self._members)
        self.similarity = lru_cache(1 << 17)(self._similarity)

    def read(self, texts: Iterable[tuple[str, Key, str]]) -> int:
        """Take in the stream; how many texts it has."""
        count = 0
        for batch in batches((text, (key, space)) for text, key, space in texts):
            fresh: list[str] = []
            for text, (key, space) in batch:
                small = normalised(text)
                number = self.texts.setdefault(digest(small, space), len(self.keys))
                if number < len(self.keys):
                    self.repeated.setdefault(number, [self.keys[number]]).append(key)
                    self.keys[number] = min(self.keys[number], key)
                else:
                    self.keys.append(key)
                    self.spaces.append(int.from_bytes(digest(space)[:8], "big") if space else 0)
                    fresh.append(small)
            count += len(batch)
            if self.near:
                words = hashed_words(fresh)
                self.numbers.extend(words.numbers.tolist())
                self.spool.add(runs(words, self.near.ngram))
        return count

    def clusters(self, counts: Counter[str]) -> Clusters:
        """Texts that are linked by being nearly the same."""
        order = np.argsort(np.array(list(self.texts), "S16"), kind="stable")  # no matter how the stream was ordered
        self.boilerplate = self._boilerplate(order)
        counts["runs of words that are boilerplate"] = len(self.boilerplate)
        with_words, keys = self._band_keys()
        order = order[with_words[order]]
        clusters, failures = Clusters(len(self.keys)), Counter[int]()
        for band in range(keys.shape[1]):
            for bucket in buckets(keys[:, band], order):
                self._link(bucket, clusters, failures)
        counts["texts not compared with all candidates"] = sum(count >= FAILURES for count in failures.values())
        return clusters

    def _link(self, bucket: list[int], clusters: Clusters, failures: Counter[int]) -> None:
        """Join what is alike among candidates: a text meets the members of another cluster until one is like it."""
        parts: dict[int, list[int]] = {}  # root -> its members in this bucket
        for text in bucket:
            mine = clusters.root(text)
            for root in list(islice(parts, FAILURES + 1)):
                if root == mine or root not in parts or not self._meets(text, parts[root], failures):
                    continue
                few, many = sorted((parts.pop(root), parts.pop(mine, [])), key=len)
                mine = clusters.join(text, root)
                parts[mine] = many
                many += few
            parts.setdefault(mine, []).append(text)

    def _meets(self, text: int, others: list[int], failures: Counter[int]) -> bool:
        """Whether it is like one of them, as far as its patience goes."""
        for other in others:
            if failures[text] >= FAILURES:
                return False
            if self._alike(text, other):
                return True
            failures[text] += 1
        return False

    def _alike(self, one: int, other: int) -> bool:
        assert self.near is not None
        if self.spaces[one] != self.spaces[other]:
            return False
        if self.near.same_numbers and self.numbers[one] != self.numbers[other]:
            return False
        return self.similarity(min(one, other), max(one, other)) >= self.near.threshold

    def _similarity(self, one: int, other: int) -> float:
        return jaccard(self.members(one), self.members(other))

    def _members(self, text: int) -> Hashes:
        return np.unique(self._telling(self.spool.read(text, text + 1)).hashes)

    def _telling(self, sets: Runs) -> Runs:
        """Without boilerplate; a text that has nothing else keeps it."""
        if not len(self.boilerplate):
            return sets
        places = np.searchsorted(self.boilerplate, sets.hashes).clip(max=len(self.boilerplate) - 1)
        telling = self.boilerplate[places] != sets.hashes
        counts = np.diff(np.concatenate([[0], np.cumsum(telling)])[sets.starts])
        telling |= np.repeat(counts == 0, np.diff(sets.starts))
        return Runs(sets.hashes[telling], np.concatenate([[0], np.cumsum(telling)])[sets.starts])

    def _boilerplate(self, order: Places) -> Hashes:
        """Runs that stand in a larger share of the texts than what says something about one of them."""
        assert self.near is not None
        if self.near.boilerplate is None:
            return np.empty(0, np.uint64)
        sample: list[Hashes] = []
        size = 0
        for text in order.tolist():
            sample.append(np.unique(self.spool.read(text, text + 1).hashes))
            size += len(sample[-1])
            if size > SAMPLED:
                break
        hashes, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *sample]), return_counts=True)
        return hashes[counts > max(self.near.boilerplate * len(sample), COMMON)]

    def _band_keys(self) -> tuple[Bool[np.ndarray, " texts"], UInt64[np.ndarray, "texts bands"]]:
        """(which texts have words, the keys of their bands)."""
        assert self.near is not None
        cut = bands_for(self.near.threshold, self.near.num_perm, self.near.recall)
        with_words = np.zeros(len(self.keys), bool)
        keys = np.zeros((len(self.keys), cut.bands), np.uint64)
        for first, last in self.spool.blocks(BLOCK):
            sets = self._telling(self.spool.read(first, last))
            full = np.diff(sets.starts) > 0
            with_words[first:last] = full
            keys[first:last][full] = band_keys(Runs(sets.hashes, np.unique(sets.starts)), cut)
        return with_words, keys ^ np.frombuffer(self.spaces, np.uint64)[:, None]

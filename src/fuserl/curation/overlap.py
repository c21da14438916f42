"""Which runs of words texts have in common with evaluation texts, and how much of either they are."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64

from fuserl.curation.shingles import Hashes, Runs, batches, hashed_words, runs
from fuserl.curation.texts import digest, normalised, words

COMMON = 20  # evaluation texts of a set, or prompts, in which a run must stand at least to be a template's

Numbers = Int64[np.ndarray, " _"]


@runtime_checkable
class Texts(Protocol):
    """Evaluation texts, from a file (`eval_sets.EvalSet`) or from memory."""

    @property
    def name(self) -> str:
        """Of the set."""
        ...

    def texts(self) -> Iterator[tuple[str, str]]:
        """(id, text); an id may come again."""
        ...


class Item(NamedTuple):
    """One evaluation text."""

    set: str
    id: str
    text: str
    length: int  # words of its runs: n, or all it has


class Place(NamedTuple):
    """Where a text of the data stands."""

    prompt_id: str
    source: str | None  # None: the prompt itself
    sample: int | None


class Match(NamedTuple):
    """A text of the data and an evaluation text that have runs in common, runs of templates not counted."""

    place: Place
    item: Item
    shared: int  # runs
    of_item: float  # shared / all runs of the evaluation text
    of_text: float  # shared / all runs of the text in the data
    share: float  # the larger of the two: shared / runs of the shorter one
    run: str  # the first that is shared, in the evaluation text's order


class Index:
    """The runs of all evaluation texts.

    Args:
        length: words of a run. An evaluation text with fewer words is one run.
        shortest: texts of at least so many words are found inside longer ones; even shorter ones must be all there is.
    """

    def __init__(self, sets: Iterable[Texts], length: int, shortest: int) -> None:
        self.items: list[Item] = []
        self.per_set: Counter[str] = Counter()
        found: list[Hashes] = []
        for batch in batches((text, (each.name, name)) for each in sets for name, text in each.texts()):
            words_of = hashed_words([normalised(text) for text, _ in batch], symbols=False)
            runs_of = runs(words_of, length)
            counts = np.diff(words_of.starts).tolist()
            for place, (text, (name, number)) in enumerate(batch):
                if counts[place]:
                    self.items.append(Item(name, number, text, min(counts[place], length)))
                    self.per_set[name] += 1
                    found.append(np.unique(runs_of.hashes[runs_of.starts[place] : runs_of.starts[place + 1]]))
        self.sizes = np.array([len(hashes) for hashes in found], np.int64)
        self.hashes, run = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_inverse=True)
        order = np.argsort(run, kind="stable")
        self.run_of_pair = run[order]
        self.item_of_pair = np.repeat(np.arange(len(found)), self.sizes)[order]
        self.starts = np.searchsorted(self.run_of_pair, np.arange(len(self.hashes) + 1))  # of each run's pairs
        self.lengths = sorted({item.length for item in self.items if shortest <= item.length < length} | {length})

    def numbers(self, hashes: Hashes) -> Numbers:
        """The number of each run, -1 for those that stand in no evaluation text."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, places, -1)

    def common(self, max_frequency: float) -> Bool[np.ndarray, " _"]:
        """Which runs stand in a larger share of one set's texts, and in more than COMMON of them."""
        names = sorted(self.per_set)
        code = np.array([names.index(item.set) for item in self.items], np.int64)
        limits = np.array([max(max_frequency * self.per_set[name], COMMON) for name in names])
        pairs, counts = np.unique(self.run_of_pair * len(names) + code[self.item_of_pair], return_counts=True)
        found = np.zeros(len(self.hashes), bool)
        if len(pairs):
            found[pairs[counts > limits[pairs % len(names)]] // len(names)] = True
        return found

    def shown(self, found: Sequence[int], item: Item) -> str:
        """The words of the first of some runs of an evaluation text."""
        text = normalised(item.text)
        numbers = self.numbers(runs(hashed_words([text], symbols=False), self.lengths[-1]).hashes)
        place = np.flatnonzero(np.isin(numbers, np.array(found)))[0]
        return " ".join(words(text, symbols=False)[place : place + item.length])


class Overlaps:
    """What the texts of a data set have in common with an index."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.places: list[Place] = []  # of texts that have something in common
        self.num_texts = 0
        self._sizes = array("q")  # runs of those texts
        self._text, self._run = array("q"), array("q")  # pairs: the text has the run
        self._alike: dict[bytes, int] = {}  # digest -> number, of those texts
        self._number = array("q")

    def add(self, texts: Iterable[tuple[str, Place]]) -> None:
        """Look through texts."""
        for batch in batches(texts):
            small = [normalised(text) for text, _ in batch]
            words_of = hashed_words(small, symbols=False)
            by_length = [runs(words_of, length) for length in self.index.lengths]
            pairs = np.unique(np.concatenate([self._pairs(each) for each in by_length], axis=1), axis=1)
            for text in np.unique(pairs[0]).tolist():
                longest = by_length[-1]
                self._text.extend([len(self.places)] * int((pairs[0] == text).sum()))
                self._sizes.append(len(np.unique(longest.hashes[longest.starts[text] : longest.starts[text + 1]])))
                self._number.append(self._alike.setdefault(digest(small[text]), len(self._alike)))
                self.places.append(batch[text][1])
            self._run.extend(pairs[1].tolist())
            self.num_texts += len(batch)

    def _pairs(self, of_texts: Runs) -> Int64[np.ndarray, "2 pairs"]:
        """(text, run) for all runs that stand in the index."""
        numbers = self.index.numbers(of_texts.hashes)
        found = np.flatnonzero(numbers >= 0)
        return np.stack([np.searchsorted(of_texts.starts, found, side="right") - 1, numbers[found]])

    def common(self, max_frequency: float) -> Bool[np.ndarray, " _"]:
        """Which runs stand in a larger share of the texts, and in more than COMMON different ones."""
        number = np.frombuffer(self._number, np.int64)[np.frombuffer(self._text, np.int64)]
        pairs = np.unique(np.stack([number, np.frombuffer(self._run, np.int64)]), axis=1)
        counts = np.bincount(pairs[1], minlength=len(self.index.hashes))
        return counts > max(max_frequency * self.num_texts, COMMON)

    def matches(self, templates: Bool[np.ndarray, " _"]) -> Iterator[Match]:
        """Every text with every evaluation text that shares a run with it, but for runs of templates."""
        text, run = (np.frombuffer(each, np.int64) for each in (self._text, self._run))
        sizes = self.index.sizes - np.bincount(
            self.index.item_of_pair[templates[self.index.run_of_pair]], minlength=len(self.index.items)
        )
        bounds = np.searchsorted(text, np.arange(len(self.places) + 1))
        for number, place in enumerate(self.places):
            here = run[bounds[number] : bounds[number + 1]]
            telling = here[~templates[here]]
            size = max(self._sizes[number] - int(templates[here].sum()), 1)
            shared: dict[int, list[int]] = {}
            for each in telling.tolist():
                for item in self.index.item_of_pair[self.index.starts[each] : self.index.starts[each + 1]].tolist():
                    shared.setdefault(item, []).append(each)
            for item, runs_of in shared.items():
                of_item, of_text = (min(len(runs_of) / each, 1.0) for each in (int(sizes[item]), size))
                about = self.index.items[item]
                first = self.index.shown(runs_of, about)
                yield Match(place, about, len(runs_of), of_item, of_text, max(of_item, of_text), first)

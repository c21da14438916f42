"""From a source's tokens to the target's: by equal text (EM), least edit distance (MinED), what was aligned (MS).

The three rules are functions of plain strings, as the papers write them. `map_tokens` applies the first two to real
vocabularies, where a token may control, be a byte, or be missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from fuserl.distributions.alignment import Alignment, Ids
from fuserl.distributions.kept import keep, recalled
from fuserl.distributions.marks import Vocabulary
from fuserl.distributions.nearest import nearest

LAYOUT = 1  # raise it when a map means something else
HELD = 1 << 22  # matches that are held before they are counted
CLOSE = 0.1  # factor on the distance of strings one of which contains the other (FuseChat)
Map = Int[np.ndarray, " source"]  # target token of every source token; -1 where there is none
Rule = Callable[[Sequence[str], Sequence[str]], Map]


def exact(source: Sequence[str], target: Sequence[str]) -> Map:
    """EM: the first target token of the same text, -1 where there is none.

    >>> exact([" the", "x"], ["the", " the", " the"]).tolist()
    [1, -1]
    """
    first: dict[str, int] = {}
    for place, text in enumerate(target):
        first.setdefault(text, place)
    return np.array([first.get(text, -1) for text in source], dtype=np.int32)


def min_edit(source: Sequence[str], target: Sequence[str]) -> Map:
    """MinED: the same text, else the least edit distance over the whole target vocabulary; ties to the first.

    >>> min_edit(["grammar"], ["gram", "grammer", "hammer"]).tolist()
    [1]
    """
    found = exact(source, target)
    missing = np.flatnonzero(found < 0)
    if len(missing) and len(target):
        found[missing] = nearest([source[place] for place in missing.tolist()], target)
    return found


def map_tokens(source: Vocabulary, target: Vocabulary, rule: Rule) -> Map:
    """A rule between two real vocabularies.

    Ordinary tokens are compared by text with ordinary ones, in the order of ids; target tokens of one byte
    (`<0xE4>`) come behind the others. A special token goes to that of its role (BOS to BOS), else to that of its name, else to
    the unknown token (EOS where there is none), or nowhere if the rule gives nothing for unequal texts.
    """
    bytes_last = sorted(range(len(target)), key=lambda token: token in target.byte_fallback)
    order = np.array([token for token in bytes_last if token not in target.special], dtype=np.int32)
    ordinary = np.array([token for token in range(len(source)) if token not in source.special], dtype=np.int32)
    places = rule(
        [source.texts[token] for token in ordinary.tolist()], [target.texts[token] for token in order.tolist()]
    )
    found = np.full(len(source), -1, dtype=np.int32)
    found[ordinary] = np.where(places >= 0, order[places], -1)
    nowhere = unknown(target) if rule(["a"], ["b"])[0] >= 0 else -1
    return _with_special(found, source, target, nowhere)


def unknown(target: Vocabulary) -> int:
    """The target's unknown token; EOS where there is none; else -1."""
    return target.roles.get("unk", target.roles.get("eos", -1))


def _with_special(found: Map, source: Vocabulary, target: Vocabulary, nowhere: int) -> Map:
    names = {target.names[token]: token for token in sorted(target.special, reverse=True) if target.names[token]}
    for token in source.special:
        found[token] = names.get(source.names[token], nowhere)
    for role, token in source.roles.items():
        if role in target.roles:
            found[token] = target.roles[role]
    return found


class Together:
    """C: how often a target token was aligned with a source token, over all texts (step 2 of FuseChat)."""

    def __init__(self, num_source: int) -> None:
        self.num_source = num_source
        self._keys, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._new: list[np.ndarray] = []
        self._held = 0

    def add(self, alignment: Alignment, source: Ids, target: Ids) -> None:
        """Count the matches of one text."""
        path = alignment.path()
        self._new.append(
            np.asarray(target, dtype=np.int64)[path[:, 1]] * self.num_source + np.asarray(source)[path[:, 0]]
        )
        self._held += len(path)
        if self._held > max(HELD, len(self._keys)):
            self._settle()

    def matches(self) -> Int[np.ndarray, "pairs 3"]:
        """(target token, source token, count) of every pair that was matched, in the order of tokens."""
        self._settle()
        return np.stack([*np.divmod(self._keys, self.num_source), self._counts], axis=1)

    def _settle(self) -> None:
        keys, inverse = np.unique(np.concatenate([self._keys, *self._new]), return_inverse=True)
        ones = np.ones(len(inverse) - len(self._keys), dtype=np.int64)
        counts = np.bincount(inverse, np.concatenate([self._counts, ones]), minlength=len(keys))
        self._keys, self._counts, self._new, self._held = keys, counts.astype(np.int64), [], 0


def statistics(source: Sequence[str], target: Sequence[str], matches: Int[np.ndarray, "pairs 3"], nowhere: int) -> Map:
    """MS: among the target tokens c that t was aligned with, the least d(t, c) * sigmoid(C[c, t]); ties to the first.

    d is the edit distance, a tenth of it where one text contains the other. The sigmoid of a count is at least 0.73
    and grows with it, so distance decides and frequent matches are put back a little: as published.

    Args:
        matches: (c, t, count), of `Together.matches`.
        nowhere: for tokens that were never aligned.
    """
    found = np.full(len(source), nowhere, dtype=np.int32)
    if not len(matches):
        return found
    theirs = [target[token] for token in matches[:, 0]]
    ours = [source[token] for token in matches[:, 1]]
    distance = cpdist(ours, theirs, scorer=Levenshtein.distance, dtype=np.int32).astype(np.float64)
    inside = np.array([a in b or b in a for a, b in zip(ours, theirs, strict=True)])
    counts, where = np.unique(matches[:, 2], return_inverse=True)
    sigmoid = np.array([1 / (1 + math.exp(-count)) for count in counts.tolist()])[where]
    score = distance * np.where(inside, CLOSE, 1.0) * sigmoid
    order = np.lexsort((matches[:, 0], score, matches[:, 1]))
    tokens, first = np.unique(matches[order, 1], return_index=True)
    found[tokens] = matches[order[first], 0]
    return found


def statistics_map(source: Vocabulary, target: Vocabulary, matches: Int[np.ndarray, "pairs 3"]) -> Map:
    """MS between two real vocabularies; special tokens as in `map_tokens`."""
    kept = ~np.isin(matches[:, 0], list(target.special)) & ~np.isin(matches[:, 1], list(source.special))
    found = statistics(source.texts, target.texts, matches[kept], unknown(target))
    return _with_special(found, source, target, unknown(target))


def cached(folder: Path, name: str, source: Vocabulary, target: Vocabulary, make: Callable[[], Map]) -> Map:
    """A map from the cache, or made and kept there; by the content of both vocabularies.

    Args:
        name: of the rule, with the digest of whatever else decides the map (the matches of MS).

    Raises:
        FuserlError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps([LAYOUT, name, source.digest, target.digest]).encode()).hexdigest()[:24]
    path = folder / f"vocabulary-{key}.npy"
    known = recalled(path)
    fits = known is not None and known.shape == (len(source),) and known.dtype == np.int32
    if known is not None and fits and -1 <= known.min() <= known.max() < len(target):
        return known
    found = make()
    keep(path, found, "the vocabulary map")
    return found

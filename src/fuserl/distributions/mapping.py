"""A source's distributions along an alignment, in the target's vocabulary (FuseChat's steps 4 and 5, FuseLLM's rule).

The distribution at target position i says what follows token i. It is copied from a source position, or it is one-hot on
the *next* target token, `gold[i]`, or the target's own. FuseLLM's code puts the one-hot on the token at i itself, which
teaches the model to repeat; FuseChat's is right, and ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from fuserl.distributions.alignment import Alignment, Ids
from fuserl.distributions.topk import Combine, TopK, merged
from fuserl.distributions.vocabulary import Map
from fuserl.errors import FuserlError

GOLD, OWN = -1, -2  # instead of a source position
Chosen = Int[np.ndarray, "_"]  # [target]


def next_tokens(ids: Ids) -> Int[np.ndarray, " target"]:
    """The token behind each, -1 behind the last.

    >>> next_tokens([5, 6, 7]).tolist()
    [6, 7, -1]
    """
    return np.append(np.asarray(ids, dtype=np.int64)[1:], -1) if len(ids) else np.zeros(0, dtype=np.int64)


def choose_equal(alignment: Alignment, source: Ids, target: Ids, equal: Callable[[int, int], bool]) -> Chosen:
    """EM and MinED: the source position where exactly one is matched and its token is the target's; else gold.

    Args:
        equal: (source token, target token) -> are they the same? See `same_text`, `same_text_or_mapped`.
    """
    _require(alignment, source, target)
    chosen = np.full(len(target), GOLD, dtype=np.int64)
    for i in np.flatnonzero(alignment.last == alignment.first).tolist():
        j = int(alignment.first[i])
        if equal(int(source[j]), int(target[i])):
            chosen[i] = j
    return chosen


def same_text(source: Sequence[str], target: Sequence[str]) -> Callable[[int, int], bool]:
    """EM's test: the same text. Both by id, see `Vocabulary.texts`."""
    return lambda token, other: source[token] == target[other]


def same_text_or_mapped(source: Sequence[str], target: Sequence[str], g: Map) -> Callable[[int, int], bool]:
    """MinED's test: the same text, or the vocabulary map makes it so.

    (FuseChat's released code asks the map with a position here, not with a token.)
    """
    return lambda token, other: source[token] == target[other] or int(g[token]) == other


def choose_spelled(
    alignment: Alignment,
    source: Ids,
    target: Ids,
    source_texts: Sequence[str],
    target_texts: Sequence[str],
) -> Chosen:
    """MS: the first matched source token of which one text ends with the other; else, of several, the last of those that
    spell the target's token one after the other; else gold. A token that is spelled in part gets the target's own.
    """
    _require(alignment, source, target)
    chosen = np.full(len(target), GOLD, dtype=np.int64)
    for i, (first, last) in enumerate(zip(alignment.first.tolist(), alignment.last.tolist(), strict=True)):
        text = target_texts[target[i]]
        others = [source_texts[source[j]] for j in range(first, last + 1)]
        found = next((n for n, other in enumerate(others) if _suffix(other, text)), None)
        if found is not None:
            chosen[i] = first + found
        elif len(others) > 1:
            spelled = _spelled(text, others)
            chosen[i] = spelled if spelled < 0 else first + spelled
    return chosen


def _suffix(one: str, other: str) -> bool:
    return bool(one and other) and (one.endswith(other) or other.endswith(one))


def _spelled(text: str, others: Sequence[str]) -> int:
    """The last of the tokens that spell the text, GOLD where none begins it, OWN where it is not finished."""
    used = GOLD
    for place, other in enumerate(others):
        if other and text.startswith(other):
            text, used = text[len(other) :], place
    return OWN if used >= 0 and text else used


def map_rows(
    steps: TopK,
    chosen: Chosen,
    to_target: Map,
    gold: Chosen,
    own: TopK,
    *,
    combine: Combine,
    temperature: float = 1.0,
) -> TopK:
    """The source's distributions at the target's positions, in its vocabulary; every row sums to 1.

    Args:
        steps: of every source position, the likeliest first.
        chosen: for every target position a source position, GOLD or OWN.
        to_target: see `vocabulary`; entries without a target token are left out before probabilities are made.
        gold: see `next_tokens`; where there is none the target's own distribution stands.
        own: the target's.
        combine: `topk.largest` (as published) or `topk.added`.
        temperature: of the softmax over what is kept. 1: the published runs.

    Raises:
        FuserlError: numbers of rows do not agree, or a row would be empty.
    """
    if not len(chosen) == len(gold) == len(own):
        raise FuserlError(f"{len(chosen)} choices, {len(gold)} next tokens and {len(own)} distributions do not agree")
    if len(chosen) and chosen.max() >= len(steps):
        raise FuserlError(f"position {chosen.max()} of {len(steps)} was chosen", hint="align the same tokens")
    copied = np.flatnonzero(chosen >= 0)
    picked = steps.take(chosen[copied]).renormalised(temperature)
    ids = np.where(picked.ids >= 0, to_target[picked.ids], -1)
    moved = merged(ids, picked.probs, combine).renormalised()
    k = max(steps.ids.shape[1], own.ids.shape[1], 1)
    base = own.renormalised(temperature).padded(k)
    result = TopK(base.ids.astype(np.int64), base.logps.astype(np.float64))
    kept = (moved.ids >= 0).any(axis=1)
    moved = moved.padded(k)
    result.ids[copied[kept]], result.logps[copied[kept]] = moved.ids[kept], moved.logps[kept]
    hot = np.flatnonzero((chosen == GOLD) & (gold >= 0))
    result.ids[hot], result.logps[hot] = -1, -np.inf
    result.ids[hot, 0], result.logps[hot, 0] = gold[hot], 0.0
    empty = np.flatnonzero(~(result.ids >= 0).any(axis=1))
    if len(empty):
        raise FuserlError(f"position {empty[0]} has no distribution", hint="the target's own rows must not be empty")
    return result


def _require(alignment: Alignment, source: Ids, target: Ids) -> None:
    if len(alignment.first) != len(target) or alignment.num_source != len(source):
        raise FuserlError(
            f"an alignment of {alignment.num_source} with {len(alignment.first)} tokens, but {len(source)} and {len(target)} are given",
            hint="align the same tokens",
        )

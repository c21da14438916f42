"""Which source tokens belong to which target tokens, of many texts at a time: two ways to tell."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from fuserl.distributions.alignment import Alignment
from fuserl.distributions.dtw import dtw_many
from fuserl.distributions.marks import Vocabulary
from fuserl.distributions.offsets import align_spans
from fuserl.distributions.readers import Sequence
from fuserl.distributions.spans import token_spans
from fuserl.errors import FuserlError


class Pair(NamedTuple):
    """A text in two tokenisations, as `Reader.sequence` gives them for the aligner's scope."""

    source: Sequence
    target: Sequence
    text: str  # the response


@runtime_checkable
class Aligner(Protocol):
    """See `Warping` and `Offsets`."""

    scope: str  # what is aligned: the whole `conversation`, or the `response` behind the prompt's last token

    def align(self, pairs: Many[Pair], source: Vocabulary, target: Vocabulary) -> list[Alignment]:
        """One alignment a pair, over all tokens of its sequences."""
        ...


class Warping:
    """Dynamic time warping over edit distances of tokens, as FuseLLM and FuseChat align (arXiv:2402.16107 §3.3).

    Args:
        scope: `conversation`, as published; or `response`, which takes less time and holds fast that both responses begin
            at the same place.

    Raises:
        FuserlError: the scope is neither.
    """

    def __init__(self, *, scope: str) -> None:
        if scope not in ("conversation", "response"):
            raise FuserlError(f"`scope` is {scope!r}", where="`aligner.scope`", hint="conversation or response")
        self.scope = scope

    def align(self, pairs: Many[Pair], source: Vocabulary, target: Vocabulary) -> list[Alignment]:
        """See `Aligner`."""
        return dtw_many([(pair.source.ids, pair.target.ids) for pair in pairs], source.bare, target.bare)


class Offsets:
    """By the bytes of the response that tokens cover: right wherever both tokenizers spell the text, and linear."""

    scope = "response"

    def align(self, pairs: Many[Pair], source: Vocabulary, target: Vocabulary) -> list[Alignment]:
        """See `Aligner`."""
        return [
            align_spans(_spans(pair.source, pair.text, source), _spans(pair.target, pair.text, target))
            for pair in pairs
        ]


def _spans(sequence: Sequence, text: str, vocabulary: Vocabulary) -> np.ndarray:
    """Bytes of the response; the prompt's last tokens stand at its start, the end of the turn at its end."""
    before, end = sequence.start + 1, len(text.encode())
    inside = token_spans(text, sequence.ids[before:-1].tolist(), vocabulary)
    return np.concatenate([np.zeros((before, 2), np.int64), inside.reshape(-1, 2), [[end, end]]])

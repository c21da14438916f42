"""Dynamic time warping of two token lists, as FuseLLM and FuseChat align them, exactly and fast.

Cost of a match: edit distance of the two tokens without their word-boundary marks. D[i, j] = cost[i, j] + the least of
D[i-1, j-1], D[i, j-1], D[i-1, j]; the path goes back from the end, and where several are least, in that order.
The table is computed by `warping`, or by `halving` where it would be large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from fuserl.distributions.alignment import Alignment, Ids, of_path
from fuserl.distributions.halving import long_path
from fuserl.distributions.warping import Room, accumulated, traced

CELLS = 1 << 19  # of the tables of the texts that are computed together: they stay in the processor's cache
LARGEST = 1 << 22  # cells of one table; a larger one is halved, so memory stays linear in the tokens


def dtw(source: Sequence[str], target: Sequence[str]) -> Alignment:
    """Align two lists of tokens, each given as text without marks.

    >>> dtw(["Ex", "ample", "s"], ["Example", "s"]).path().tolist()
    [[0, 0], [1, 0], [2, 1]]
    """
    return dtw_many([(range(len(source)), range(len(target)))], source, target)[0]


def dtw_many(
    pairs: Sequence[tuple[Ids, Ids]], source_texts: Sequence[str], target_texts: Sequence[str]
) -> list[Alignment]:
    """Align many texts between two tokenizers, in order.

    Args:
        pairs: of each text its tokens by the source's and by the target's tokenizer.
        source_texts: by id, each token without its mark: `Vocabulary.bare`.
        target_texts: the same of the target.
    """
    found: list[Alignment | None] = [None] * len(pairs)
    whole = [place for place, (a, b) in enumerate(pairs) if len(a) and len(b)]
    for place in set(range(len(pairs))) - set(whole):
        found[place] = of_path(np.zeros((0, 2), dtype=np.int64), len(pairs[place][0]), len(pairs[place][1]))
    room = Room()
    for chunk in _together(pairs, whole):
        tables = [Costs(*pairs[place], source_texts, target_texts) for place in chunk]
        for place, alignment in zip(chunk, _alignments(tables, room), strict=True):
            found[place] = alignment
    return [alignment for alignment in found if alignment is not None]


class Costs:
    """Edit distances between the tokens of one text; every pair of different tokens is computed once."""

    def __init__(self, source: Ids, target: Ids, source_texts: Sequence[str], target_texts: Sequence[str]) -> None:
        self.source, self.rows = _different(source, source_texts)
        self.target, self.columns = _different(target, target_texts)
        self.longest = max(max(map(len, self.source)), max(map(len, self.target)))
        self.shape = len(self.rows), len(self.columns)

    def of_different(self, rows: Sequence[str], columns: Int[np.ndarray, " columns"]) -> np.ndarray:
        """Costs of some tokens of the source, each once, at every column given, [rows, columns]."""
        dtype = np.uint8 if self.longest < 256 else np.int32
        return cdist(rows, self.target, scorer=Levenshtein.distance, dtype=dtype).take(columns, axis=1)

    def block(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """A part of the table, [rows, columns]."""
        kept, rows = np.unique(self.rows[top:bottom], return_inverse=True)
        return self.of_different([self.source[place] for place in kept], self.columns[left:right])[rows]


def _different(ids: Ids, texts: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " tokens"]]:
    """(the tokens' texts, each once; for every token which of them it is)."""
    places: dict[str, int] = {}
    where = [places.setdefault(texts[token], len(places)) for token in ids]
    return list(places), np.array(where, dtype=np.int64)


def _together(pairs: Sequence[tuple[Ids, Ids]], places: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like size, so many that their tables, filled up to the largest one, have `CELLS` cells."""
    chunk: list[int] = []
    columns = 0
    for place in sorted(places, key=lambda place: (len(pairs[place][0]), len(pairs[place][1]))):
        wide = max(columns, len(pairs[place][1]))
        if chunk and (len(chunk) + 1) * wide * len(pairs[place][0]) > CELLS:
            yield chunk
            chunk, wide = [], len(pairs[place][1])
        chunk.append(place)
        columns = wide
    if chunk:
        yield chunk


def _alignments(tables: Sequence[Costs], room: Room) -> Iterator[Alignment]:
    rows, columns = tables[0].shape
    if len(tables) == 1 and rows * columns > LARGEST:
        yield of_path(long_path(tables[0].block, tables[0].shape, LARGEST), rows, columns)
        return
    blocks = [(table.of_different(table.source, table.columns), table.rows) for table in tables]
    distances = accumulated(blocks, room)
    for place, table in enumerate(tables):
        yield traced(distances, place, *table.shape)

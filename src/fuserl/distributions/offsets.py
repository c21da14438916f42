"""Alignment by the bytes that tokens cover: linear, symmetric, and right wherever both tokenizers say where they are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from fuserl.distributions.alignment import Alignment


def align_spans(source: Int[np.ndarray, "source 2"], target: Int[np.ndarray, "target 2"]) -> Alignment:
    """Match tokens that share a byte, and tokens without any (BOS, EOS) that stand at the same place.

    Args:
        source: start and end byte of each token, which never go back, see `spans.token_spans`.
        target: the same of the target's tokens on the same text.
    """
    length = 1 + int(max((spans[:, 1].max() for spans in (source, target) if len(spans)), default=0))
    empty = source[:, 0] >= source[:, 1]
    begun, ended, points = (
        np.cumsum(np.bincount(where, minlength=length + 1))
        for where in (source[~empty, 0], source[~empty, 1], source[empty, 0])
    )  # how many begin, end, stand at this byte or before it
    starts, ends = target[:, 0], target[:, 1]
    before = np.append(0, points)  # tokens of no width before this byte
    nothing = starts >= ends
    first = ended[starts] + np.where(nothing, before[starts], points[starts])
    covering = begun[np.maximum(ends - 1, 0)] + before[ends] - 1
    last = np.where(nothing, first + points[starts] - before[starts] - 1, covering)
    return Alignment(first.astype(np.int32), last.astype(np.int32), len(source))

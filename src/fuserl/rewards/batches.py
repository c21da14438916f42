"""Batches of token sequences: of like lengths, bounded by tokens, padded on the right with a token that none holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def bucketed(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Places by length, the longest first, cut where a batch with its padding would exceed `max_tokens`.

    A sequence that alone exceeds them stands alone. The longest come first, so that too little memory shows at once.

    >>> bucketed([3, 9, 8, 4], max_tokens=18)
    [[1, 2], [3, 0]]
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def unused_token(rows: Sequence[Sequence[int]], vocabulary: int) -> int | None:
    """The smallest id that no row holds; None where they hold all.

    >>> unused_token([[0, 1], [3]], 4)
    2
    """
    used = set().union(*rows)
    return next((token for token in range(vocabulary) if token not in used), None)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """(ids, attention mask), padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = 1
    return ids, mask

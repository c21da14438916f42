"""One distribution out of several models': that of the model which reads the text best (MinCE), or a mean (AvgCE).

The choice is made once a sequence, as published. The papers compare mean nats a token, each model by its own tokens:
a tokenizer with longer tokens has more nats a token and loses. `bits_per_byte` compares what is comparable; either goes
into the same functions. Where FuseLLM packs several blocks into a row, the row has one cross-entropy, `packed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fuserl.distributions.topk import TopK, added, merged
from fuserl.errors import FuserlError

Closeness = Callable[[float], float]


def closeness(ce: float) -> float:
    """r = exp(-CE), as FuseLLM and FuseChat write it."""
    return math.exp(-ce)


def closeness_bf16(ce: float) -> float:
    """The same rounded to bf16, as FuseChat's code keeps it: models that are nearly as good tie, and the target wins."""
    return float(torch.exp(-torch.tensor(ce, dtype=torch.float64)).to(torch.bfloat16))


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """A text's cross-entropy in a unit that does not depend on the tokenizer.

    >>> round(bits_per_byte(10 * math.log(2), 5), 6)
    2.0

    Raises:
        FuserlError: the text is empty.
    """
    if num_bytes <= 0:
        raise FuserlError("an empty text has no bits a byte", hint="leave out empty responses")
    return nats / math.log(2) / num_bytes


def packed(ces: Sequence[float], num_tokens: Sequence[int]) -> float:
    """FuseLLM's figure for a row of several blocks: each block's mean cross-entropy, averaged over tokens."""
    if not sum(num_tokens):
        raise FuserlError("a row without tokens has no cross-entropy")
    return sum(ce * count for ce, count in zip(ces, num_tokens, strict=True)) / sum(num_tokens)


def min_ce(ces: Sequence[float], close: Closeness = closeness) -> int:
    """Which model's distributions are taken: the largest r; ties go to the first, where the target stands.

    Raises:
        FuserlError: there is no model, or a cross-entropy is no number.
    """
    rs = _rs(ces, close)
    return rs.index(max(rs))


def pairwise(target: float, sources: Sequence[float], close: Closeness = closeness) -> list[bool]:
    """FuseChat: for each source its own target model, which learns from the pair; True where the source is taken."""
    return [min_ce([target, source], close) == 1 for source in sources]


def avg_ce_weights(ces: Sequence[float], close: Closeness = closeness) -> list[float]:
    """softmax(r), r = exp(-CE) in (0, 1): as published, so weights of two models are within a factor of e."""
    exponents = [math.exp(r) for r in _rs(ces, close)]
    return [one / sum(exponents) for one in exponents]


def min_ce_weights(ces: Sequence[float], close: Closeness = closeness) -> list[float]:
    """All of the weight on the model that `min_ce` takes."""
    best = min_ce(ces, close)
    return [float(place == best) for place in range(len(ces))]


def mixed(rows: Sequence[TopK], weights: Sequence[float]) -> TopK:
    """The weighted mean of several models' distributions at every position.

    Models without weight are not looked at; a single one comes back as it is. Rows may have as many tokens as those of
    all models together.
    """
    taken = [(one, weight) for one, weight in zip(rows, weights, strict=True) if weight]
    if len(taken) == 1 and taken[0][1] == 1:
        return taken[0][0]
    ids = np.concatenate([one.ids for one, _ in taken], axis=1)
    return merged(ids, np.concatenate([one.probs * weight for one, weight in taken], axis=1), added)


class MinCE:
    """The model that reads the text best gives all of it: what both papers report as better.

    Args:
        close: `closeness`, or `closeness_bf16` as FuseChat's code rounds it.
    """

    def __init__(self, *, close: Closeness) -> None:
        self.close = close

    def weights(self, ces: Sequence[float]) -> list[float]:
        """Of models with these cross-entropies, the target's first."""
        return min_ce_weights(ces, self.close)

    def num_mixed(self, num_models: int) -> int:
        """How many models' tokens may stand in one row."""
        return 1


class AvgCE:
    """All models give, with weights softmax(exp(-CE)).

    Args:
        close: as in `MinCE`.
    """

    def __init__(self, *, close: Closeness) -> None:
        self.close = close

    def weights(self, ces: Sequence[float]) -> list[float]:
        """Of models with these cross-entropies, the target's first."""
        return avg_ce_weights(ces, self.close)

    def num_mixed(self, num_models: int) -> int:
        """How many models' tokens may stand in one row."""
        return num_models


def fuse_min_ce(ces: Sequence[float], rows: Sequence[TopK], close: Closeness = closeness) -> TopK:
    """The whole sequence of one model."""
    _require(ces, rows)
    return mixed(rows, min_ce_weights(ces, close))


def fuse_avg_ce(ces: Sequence[float], rows: Sequence[TopK], close: Closeness = closeness) -> TopK:
    """The weighted mean of all models at every position."""
    _require(ces, rows)
    return mixed(rows, avg_ce_weights(ces, close))


def _rs(ces: Sequence[float], close: Closeness) -> list[float]:
    if not len(ces):
        raise FuserlError("there is no model to choose from")
    wrong = [place for place, ce in enumerate(ces) if not math.isfinite(ce)]
    if wrong:
        raise FuserlError(
            f"the cross-entropy of model {wrong[0]} is {ces[wrong[0]]}",
            hint="leave the text out: FuseChat drops samples that a model cannot score",
        )
    return [close(float(ce)) for ce in ces]


def _require(ces: Sequence[float], rows: Sequence[TopK]) -> None:
    if len(ces) != len(rows) or len({len(one) for one in rows}) > 1:
        raise FuserlError(
            f"{len(ces)} cross-entropies and distributions of {[len(one) for one in rows]} positions do not belong together"
        )

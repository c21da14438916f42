"""From a margin to a loss, element by element."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fuserl.objectives.terms import Number, within


def logistic(margin: Float[Tensor, "*n"], *, label_smoothing: Number = 0.0) -> Float[Tensor, "*n"]:
    """-log σ(margin), the labels being wrong with probability `label_smoothing` in [0, 0.5).

    Source: arXiv:2305.18290 Eq. 7; the smoothed form is its "conservative" variant. The margin has no unit.

    Raises:
        FuserlError: `label_smoothing` is out of range.

    >>> import torch
    >>> [round(loss, 4) for loss in logistic(torch.tensor([0.0, 2.0])).tolist()]
    [0.6931, 0.1269]
    """
    within("label_smoothing", label_smoothing, "[0, 0.5)")
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def squared(margin: Float[Tensor, "*n"], *, tau: Number) -> Float[Tensor, "*n"]:
    """(margin - 1/(2τ))²: IPO (arXiv:2310.12036 Eq. 17). The margin is in nats, τ > 0 per nat.

    Raises:
        FuserlError: τ is not positive.

    >>> import torch
    >>> squared(torch.tensor([0.0, 5.0]), tau=0.1).tolist()
    [25.0, 0.0]
    """
    return (margin - 1 / (2 * within("tau", tau, "(0, inf)"))) ** 2

"""From a margin to a loss, element by element."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def logistic(margin: Float[Tensor, "*n"], *, label_smoothing: float = 0.0) -> Float[Tensor, "*n"]:
    """-log σ(margin), the labels being wrong with probability `label_smoothing` in [0, 0.5) (arXiv:2305.18290 Eq. 7)."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def squared(margin: Float[Tensor, "*n"], *, tau: float) -> Float[Tensor, "*n"]:
    """(margin - 1/(2τ))²: IPO (arXiv:2310.12036 Eq. 17). The margin is in nats, τ > 0."""
    return (margin - 1 / (2 * tau)) ** 2

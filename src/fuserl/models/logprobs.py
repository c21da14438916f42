"""Log-probs of chosen tokens without the [R, V] logits: the head runs in slices, and again in backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logps(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    labels: Int[Tensor, " R"],
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int = 4096,
) -> Float[Tensor, " R"]:
    """log softmax(head(hidden))[labels], nats.

    Args:
        softcap: final soft-capping of the logits (Gemma-2).
        scale: factor of the logits before it (Cohere, Granite).
        chunk: rows a slice; at most [chunk, V] logits exist, in fp32 or wider.
    """
    slices = []
    for start in range(0, max(len(labels), 1), chunk):
        arguments = hidden[start : start + chunk], weight, bias, labels[start : start + chunk], softcap, scale
        if torch.is_grad_enabled():
            slices.append(checkpoint(_slice, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            slices.append(_slice(*arguments))
    return torch.cat(slices)


def _slice(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None, scale: float
) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.gather(1, labels[:, None]).squeeze(1) - logits.logsumexp(dim=1)

"""Ways to run the same pack in this process, and the check that they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.turns import gradient_gap, require_within
from fuserl.models.scoring import Padded, Scoring
from fuserl.objectives.terms import GroupScores, Totals
from fuserl.tokens.collate import GroupBatch

TableLoss = Callable[[GroupScores], Totals]


def likelihood(scores: GroupScores) -> Totals:
    """Minus the sum of all log-probs: it may be cut anywhere, so that baselines can run a few sequences at a time."""
    logps = torch.where(scores.valid, scores.policy_logps, 0.0)
    tokens = torch.where(scores.valid, scores.num_tokens, 0).sum(dim=1)
    return Totals(-logps.sum(dim=1), tokens.to(logps.dtype), torch.ones_like(logps[:, 0]))


def forward_backward(way: Scoring, model: nn.Module, packs: Sequence[GroupBatch], loss: TableLoss) -> Tensor:
    """The summed loss; gradients are added to the weights'."""
    total = None
    for pack in packs:
        found = way.loss(model, pack, loss).sum
        found.backward()
        total = found.detach() if total is None else total + found.detach()
    assert total is not None, "there is no pack"
    return total


def gradients(model: nn.Module, work: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradient of every weight; the weights' own are cleared."""
    model.zero_grad(set_to_none=True)
    total = float(work())
    found = {name: weight.grad.float() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, found


def require_same(model: nn.Module, ways: Sequence[Callable[[], Tensor]], dtype: str) -> float:
    """Loss and gradient of every way agree with the first's.

    Returns:
        The largest relative difference.

    Raises:
        AssertionError: they do not.
    """
    first_loss, first = gradients(model, ways[0])
    worst = 0.0
    for way in ways[1:]:
        loss, found = gradients(model, way)
        gaps = gradient_gap(found, first) | {"loss": abs(loss / first_loss - 1)}
        require_within(gaps, dtype)
        worst = max(worst, *gaps.values())
    return worst


def require_exact(model: nn.Module, way: Scoring, pack: GroupBatch, dtype: str) -> float:
    """A way agrees with separate padded forwards and autograd throughout.

    Compared are likelihoods: in a gap of log-ratios near 0, the rounding of sums of thousands of nats would be seen.
    """
    runs = [lambda one=one: forward_backward(one, model, [pack], likelihood) for one in (Padded(), way)]
    return require_same(model, runs, dtype)

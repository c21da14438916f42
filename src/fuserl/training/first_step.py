"""The invariant of step 0: an untrained policy is its reference, so the DPO family's loss is ln 2 a unit of weight."""

from __future__ import annotations

import math
from functools import partial

import torch

from fuserl.errors import FuserlError
from fuserl.models.scoring import Scoring, table
from fuserl.objectives.terms import Objective
from fuserl.tokens.collate import GroupBatch


@torch.no_grad()
def check_first_pack(
    policy: torch.nn.Module,
    scoring: Scoring,
    objective: Objective,
    batch: GroupBatch,
    *,
    tolerance: float,
) -> None:
    """Compare the policy's log-probs with the reference's on one pack.

    Args:
        tolerance: largest difference of a response's log-prob, nats a token; and of loss / weight from ln 2, nats.

    Raises:
        FuserlError: the two disagree, so every margin of the run would be wrong.
    """
    scores = table(batch, scoring.score(policy, batch))
    used = scores.valid & (batch.row >= 0)
    gap = (scores.policy_logps - scores.reference_logps).abs() / scores.num_tokens.clamp(min=1)
    worst = float(torch.where(used, gap, 0.0).max()) if used.any() else 0.0
    if not worst <= tolerance:
        raise FuserlError(
            f"before the first step, policy and reference differ by {worst:.2e} nats a token (allowed: {tolerance:.0e})",
            where="log-probs of the first pack",
            hint="the reference must be the model that training starts from: check `reference.path`, adapters, dtype and "
            "`trainer.attention`; for low precision raise `trainer.first_step_tolerance`",
        )
    if objective.starts_at_ln2 and used.any():
        totals = partial(objective.loss, nll=0.0)(scores, progress=0.0)
        weight = totals.weight.sum()
        start = float(totals.sum.sum() / weight) if weight > 0 else math.log(2)
        if not abs(start - math.log(2)) <= max(1e-3, 10 * tolerance):
            raise FuserlError(
                f"the loss starts at {start:.4f} a unit of weight instead of ln 2 = {math.log(2):.4f}",
                where=f"objective `{objective.name}`",
                hint="this is a defect of the objective or of the masks, not of your data: report it with your config.yaml",
            )

"""The LightningModule of `objective=distill`: a response's mixed loss stands where its log-probability stands elsewhere.

The objective's own loss then pools, weighs and counts responses as ever, so that λ = 1 is that objective itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fuserl.models.scoring import Scoring, table
from fuserl.objectives.distillation import Distillation, Fused, Sums, combined
from fuserl.objectives.terms import Totals
from fuserl.tokens.collate import GroupBatch
from fuserl.training.group_module import GroupModule
from fuserl.training.metrics import tally, tally_parts


class TokenModule(GroupModule):
    """A policy trained on token distributions of others; validation measures its log-probs, as for every objective."""

    def training_step(self, batch: GroupBatch, batch_index: int) -> Tensor:
        """Loss of one pack over the denominator of its whole optimiser step."""
        distillation: Distillation = self.objective.distillation
        sums, share = sums_of(self.policy, self.scoring, batch, distillation), distillation.share(self.progress)
        totals = self._loss(table(batch, -combined(sums, share).sum))
        self._measure_parts(batch, sums, share, totals)
        return self._of_step(totals.sum.sum(), batch)

    @torch.no_grad()
    def _measure_parts(self, batch: GroupBatch, sums: Sums, share: float, totals: Totals) -> None:
        scores = table(batch, -sums.clm)
        parts: Mapping[str, Totals] = {
            "clm": self._loss(scores),
            "divergence": self._loss(table(batch, -sums.divergence)),
        }
        domain, slices = self.report.train_domain.to(self.device)[batch.index], self.report.slices
        self.seen += tally(scores, totals, None, domain, slices, against_reference=False)
        num_given = table(batch, sums.num_given).policy_logps
        self.seen += tally_parts(scores, parts, num_given, share, domain, slices)


def sums_of(policy: nn.Module, scoring: Scoring, batch: GroupBatch, distillation: Distillation) -> Sums:
    """CLM and divergence of a pack's unique responses, one row of nothing where there are none."""
    ids: Any = batch.support_ids  # a pack of training has them
    return distillation.sums(
        Fused(batch.support_logps, ids >= 0, batch.support_tail),
        scoring.support(policy, batch, distillation.temperature),
        batch.owner,
        num_sequences=max(1, sum(not segment.is_prompt for segment in batch.segments)),
    )

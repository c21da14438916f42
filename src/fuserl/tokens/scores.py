"""The table that objectives read, before any model has scored it."""

from __future__ import annotations

import numpy as np
import torch

from fuserl.objectives.terms import GroupScores
from fuserl.tokens.store import TokenStore


def scores_of(store: TokenStore) -> GroupScores:
    """The whole split as one table with zeros for log-probs: what depends on data alone is read off it."""
    zeros = torch.zeros(store.rewards.shape, dtype=torch.float64)
    return GroupScores(
        policy_logps=zeros,
        reference_logps=zeros,
        num_tokens=torch.from_numpy(np.array(store.num_tokens, dtype=np.int64)),
        rewards=torch.from_numpy(np.array(store.rewards, dtype=np.float64)),
        source=torch.from_numpy(np.array(store.source, dtype=np.int64)).clamp(min=0),
        given=torch.from_numpy(np.array(store.given, dtype=np.float64)),
        valid=torch.from_numpy(np.array(store.valid, dtype=bool)),
    )

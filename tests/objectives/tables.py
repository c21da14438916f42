"""Tables of scores in float64: random ones, hand-made ones, and every objective as `conf/` composes it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fuserl.objectives.terms import GroupScores, Objective

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = tuple(sorted(path.stem for path in (CONF / "objective").glob("*.yaml")))
RULES = tuple(sorted(path.stem for path in (CONF / "weights").glob("*.yaml")))
TARGET = 0  # the source that WRPO takes for the target
NAN = float("nan")


def random_table(seed: int, *, P: int = 4, K: int = 8, sources: int = 3, absent: float = 0.0) -> GroupScores:
    """P prompts by K responses with different rewards; a share of the responses is absent and holds NaN."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(P, K, generator=random, dtype=torch.float64) * (high - low) + low

    num_tokens = torch.randint(1, 40, (P, K), generator=random)
    policy = uniform(-3, -0.1) * num_tokens
    scores = GroupScores(
        policy_logps=policy,
        reference_logps=policy + uniform(-2, 2),
        num_tokens=num_tokens,
        rewards=uniform(-1, 1),
        source=torch.randint(0, sources, (P, K), generator=random),
        given=uniform(0, 1),
        valid=uniform(0, 1) >= absent,
    )
    return hide(scores, ~scores.valid)


def hide(scores: GroupScores, hidden: torch.Tensor) -> GroupScores:
    """The same with absent entries that hold whatever does most harm."""
    return scores._replace(
        policy_logps=scores.policy_logps.masked_fill(hidden, NAN),
        reference_logps=scores.reference_logps.masked_fill(hidden, NAN),
        num_tokens=scores.num_tokens.masked_fill(hidden, 0),
        rewards=scores.rewards.masked_fill(hidden, NAN),
        source=scores.source.masked_fill(hidden, -1),
        given=scores.given.masked_fill(hidden, NAN),
        valid=scores.valid & ~hidden,
    )


def hand_table(rewards: list[list[float]], source: list[list[int]], **columns: list[list[float]]) -> GroupScores:
    """A table from lists; what is not given is zero log-probs, one token, no weights, all valid."""
    reward = torch.tensor(rewards, dtype=torch.float64)
    scores = GroupScores(
        policy_logps=torch.zeros_like(reward),
        reference_logps=torch.zeros_like(reward),
        num_tokens=torch.ones_like(reward, dtype=torch.long),
        rewards=reward,
        source=torch.tensor(source),
        given=torch.full_like(reward, NAN),
        valid=torch.ones_like(reward, dtype=torch.bool),
    )
    given = {name: torch.tensor(values, dtype=getattr(scores, name).dtype) for name, values in columns.items()}
    return scores._replace(**given)


@cache
def objective(name: str, *settings: str) -> Objective:
    """`conf/objective/NAME.yaml` with the other groups' defaults, and settings as on the command line.

    `weights=NAME` and `pairs=NAME` choose files; everything else is `dotted.key=value`.
    """
    groups = dict(item.split("=") for item in settings if item.split("=")[0] in ("weights", "pairs"))
    cfg = OmegaConf.create({"target_source": TARGET})
    for group, file in (("divergence", "cross_entropy"), ("share", "fixed")):
        cfg[group] = OmegaConf.load(CONF / group / f"{file}.yaml")
    cfg.objective = OmegaConf.load(CONF / "objective" / f"{name}.yaml")
    cfg.weights = OmegaConf.load(CONF / "weights" / f"{groups.get('weights', 'softmax')}.yaml")
    cfg.pairs = OmegaConf.load(CONF / "pairs" / f"{groups.get('pairs', 'per_source')}.yaml")
    if "tau" in cfg.weights:
        cfg.weights.tau = 0.3
    if "distillation" in cfg.objective:
        cfg.objective.distillation.path = "some where"
    cfg.merge_with_dotlist([item for item in settings if item.split("=")[0] not in ("weights", "pairs")])
    return instantiate(cfg.objective)


def loss_and_gradient(objective: Objective, scores: GroupScores, progress: float = 0.3) -> list[torch.Tensor]:
    """The totals of every prompt, and the gradient of their sum to the policy's log-probs."""
    policy = scores.policy_logps.clone().requires_grad_()
    totals = objective.loss(scores._replace(policy_logps=policy), progress=progress)
    (gradient,) = torch.autograd.grad(totals.sum.sum(), policy)
    return [totals.sum.detach(), totals.count, totals.weight, gradient]


def permuted(scores: GroupScores, seed: int) -> tuple[GroupScores, torch.Tensor]:
    """The columns of every prompt shuffled, and the order."""
    order = torch.rand(scores.valid.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return GroupScores(*(column.gather(1, order) for column in scores)), order

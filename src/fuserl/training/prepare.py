"""Everything that happens between a configuration and the first step: read, tokenise, select, fit, plan.

All mistakes of data and settings surface here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.objectives.diagnose import cautions, require_applicable
from fuserl.objectives.pairing import across_sources, best_and_worst_of_each_source
from fuserl.objectives.terms import GroupScores, Objective, Pairs
from fuserl.objectives.weights import auto_tau
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.schema import PromptGroup
from fuserl.records.selection import keep_sources, sources_of
from fuserl.records.splits import by_hash, in_part
from fuserl.tokens.plan import GroupCosts, Plan, fitting, make_plan
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import Template
from fuserl.tokens.tokenize import encode_dataset
from fuserl.training.datamodule import Split
from fuserl.training.metrics import Slices, best_response, chosen_not_good


@dataclass
class Prepared:
    """A run's data, ready to be packed."""

    objective: Objective
    train: Split
    validation: Split | None
    slices: Slices
    validation_groups: list[PromptGroup]  # for the probe
    tau: float | None
    influence: np.ndarray  # [N, K] share of each response in its prompt's pull upwards; rows sum to 1 or 0
    chosen_not_good: float | None = None  # share of the training pairs that prefer an answer that is not good
    cautions: tuple[str, ...] = ()  # said before the first step
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why -> prompt ids, nothing dropped silently


def read_splits(data: DictConfig) -> tuple[list[PromptGroup], list[PromptGroup], ReadReport]:
    """Training and validation groups as `conf/data` describes them."""
    report = ReadReport()

    def read(split: str | None) -> list[PromptGroup]:
        groups = read_groups(data.path, split=split, form=data.format, on_bad_row=data.on_bad_row, report=report)
        return list(keep_sources(groups, data.sources) if data.sources else groups)

    splits = splits_of(data.path)
    train = read(data.split if splits else None)
    if data.validation_split in splits and data.split != data.validation_split:
        validation = read(data.validation_split)
    else:
        train, validation = by_hash(train, data.validation_fraction, "validation")
    low, high = data.part
    train = [group for group in train if in_part(group.id, low, high)][: data.limit]
    if not train:
        raise FuserlError(
            "no training prompt is left",
            where=f"`data.path={data.path}`, split `{data.split}`, part {list(data.part)}",
            hint="widen `data.part`, `data.sources` or `data.limit`, or look at the skipped rows",
        )
    return train, validation[: data.validation_limit], report


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


def build_objective(cfg: DictConfig, scores: GroupScores, sources: Sequence[str]) -> tuple[Objective, float | None]:
    """Instantiate `conf/objective` with τ and the target's place among the sources resolved to numbers.

    Returns:
        The objective, and τ in reward units (None where the weights have none).
    """
    cfg = cfg.copy()
    tau = OmegaConf.select(cfg, "weights.tau")
    if "${weights}" not in str(OmegaConf.to_container(cfg.objective, resolve=False)):
        tau = None
    elif tau == "auto":
        cfg.weights.tau = tau = auto_tau(scores.rewards, scores.valid)
    name = cfg.target_source
    if name not in sources and "target" in (cfg.objective.get("reads") or ()):
        raise FuserlError(
            f"the data holds no answers of the target under the name `{name}`",
            where="`target_source`",
            hint=f"sample the target too, and give its name with `target_source=NAME`; the sources are {', '.join(sources)}",
        )
    cfg.target_source = list(sources).index(name) if name in sources else -1
    try:
        return instantiate(cfg.objective), tau
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, FuserlError) else error) from None


def influence(objective: Objective, scores: GroupScores) -> np.ndarray:
    """How strongly each response is pulled up at the start, normalised a prompt: -dL/dlogπ where it is positive.

    For SFT these are exactly the weights; for preference losses the weights of the chosen sides.
    """
    policy = scores.policy_logps.clone().requires_grad_()
    loss = objective.loss(scores._replace(policy_logps=policy), progress=0.0).sum.sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    pull = torch.where(scores.valid, -gradient, 0.0).clamp(min=0)
    return (pull / pull.sum(dim=1, keepdim=True).clamp(min=1e-300)).numpy()


def prepare(cfg: DictConfig, template: Template, cache: Path, *, ranks: int) -> Prepared:
    """Read, tokenise, select and plan.

    Raises:
        FuserlError: the data cannot serve the objective, or nothing is left of it.
    """
    train_groups, validation_groups, report = read_splits(cfg.data)
    sources = tuple(sources_of([*train_groups, *validation_groups]))
    left_out = {f"bad row: {what}": [where] for where, what in report.skipped}

    store = encode_dataset(train_groups, template, cache / "tokens", source_names=sources)
    scores = scores_of(store)
    objective, tau = build_objective(cfg, scores, sources)
    require_applicable(objective, scores)

    used = np.asarray(objective.select(scores))
    totals = objective.loss(scores, progress=0.0)
    keep = fitting(store, used, max_length=cfg.data.max_length, on_too_long=cfg.data.on_too_long)
    for prompt_id, why in keep.dropped:
        left_out.setdefault(why, []).append(prompt_id)
    signal = totals.weight.detach().numpy() > 0
    left_out.setdefault("no signal: equal rewards, or too few responses", []).extend(
        str(store.ids[row]) for row in keep.keep if not signal[row]
    )
    rows = np.array([row for row in keep.keep if signal[row]], dtype=np.int64)
    left_out = {why: ids for why, ids in left_out.items() if ids}
    if not len(rows):
        raise FuserlError(
            "no training prompt is left for this objective",
            where=f"`data.path={cfg.data.path}`, objective `{objective.name}`",
            hint="; ".join(f"{len(ids)} x {why}" for why, ids in left_out.items()),
        )

    count = totals.count.detach().numpy()
    train = Split(store, used, count, _plan(cfg, store, used, rows, ranks), truncate=_truncate(cfg))
    domains = tuple(sorted(set(map(str, store.domains)) | {group.domain for group in validation_groups}))
    validation = _validation(cfg, objective, validation_groups, template, cache, sources, ranks)
    return Prepared(
        objective=objective,
        train=train,
        validation=validation,
        slices=Slices(sources, domains),
        validation_groups=validation_groups,
        tau=tau,
        influence=influence(objective, scores)[rows],
        chosen_not_good=_chosen_not_good(objective, scores, store, rows, cfg.data.good_reward),
        cautions=cautions(objective),
        left_out=left_out,
    )


def _chosen_not_good(
    objective: Objective, scores: GroupScores, store: TokenStore, rows: np.ndarray, good_reward: float | None
) -> float | None:
    """Of the objective's pairs in the training prompts."""
    if objective.pairs is None:
        return None
    trained = GroupScores(*(column[rows] for column in scores))
    verdict = torch.from_numpy(np.array(store.verdict, dtype=np.int64))[rows]
    return chosen_not_good(objective.pairs(trained), verdict, trained.rewards, good_reward=good_reward)


def _validation(
    cfg: DictConfig,
    objective: Objective,
    groups: list[PromptGroup],
    template: Template,
    cache: Path,
    sources: tuple[str, ...],
    ranks: int,
) -> Split | None:
    """The held-out prompts with what the objective reads, the best response, and every source's best and worst."""
    if not groups:
        return None
    store = encode_dataset(groups, template, cache / "tokens", source_names=sources)
    scores = scores_of(store)
    used = np.array(objective.select(scores), dtype=bool)
    pairs = reported_pairs(objective, scores)(scores)
    chosen, rejected = (
        torch.zeros_like(scores.valid).scatter_reduce(1, side, pairs.valid, "amax")
        for side in (pairs.chosen, pairs.rejected)
    )
    used |= (chosen | rejected).numpy()
    used[np.arange(len(used)), best_response(scores.rewards, scores.valid).numpy()] = True
    keep = fitting(store, used, max_length=cfg.data.max_length, on_too_long="drop")
    rows = np.asarray(keep.keep, dtype=np.int64)
    if not len(rows):
        return None
    count = objective.loss(scores, progress=0.0).count.detach().numpy()
    plan = _plan(cfg, store, used, rows, ranks, once=True)
    return Split(store, used, count, plan)


def reported_pairs(objective: Objective, scores: GroupScores) -> Callable[[GroupScores], Pairs]:
    """What validation compares: the objective's own pairs, else pairs inside sources, else across them."""
    if objective.pairs is not None:
        return objective.pairs
    inside = bool(best_and_worst_of_each_source(scores).valid.any())
    return best_and_worst_of_each_source if inside else across_sources


def _plan(
    cfg: DictConfig, store: TokenStore, used: np.ndarray, rows: np.ndarray, ranks: int, *, once: bool = False
) -> Plan:
    costs = GroupCosts.of(store, used, rows)
    largest = int(costs.tokens.max())
    max_tokens = max(16384, largest) if cfg.trainer.max_tokens == "auto" else int(cfg.trainer.max_tokens)
    length = {"epochs": 1} if once else {"epochs": cfg.max_epochs, "max_steps": cfg.max_steps}
    return make_plan(
        costs, batch_size=cfg.batch_size, max_tokens=max_tokens, ranks=ranks, seed=cfg.seed, shuffle=not once, **length
    )


def _truncate(cfg: DictConfig) -> int | None:
    return cfg.data.max_length if cfg.data.on_too_long == "truncate_response" else None

"""Everything that happens between a configuration and the first step: read, tokenise, select, fit, plan.

All mistakes of data and settings surface here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.models.load import model_config
from fuserl.objectives.diagnose import cautions, require_applicable
from fuserl.objectives.pairing import across_sources, best_and_worst_of_each_source, best_response
from fuserl.objectives.terms import GroupScores, Objective, Pairs
from fuserl.objectives.weights import auto_tau
from fuserl.records.formats import ReadReport
from fuserl.records.reading import Side, sides_of
from fuserl.records.schema import PromptGroup
from fuserl.tokens.plan import GroupCosts, Plan, fitting, make_plan
from fuserl.tokens.scores import scores_of
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import Template
from fuserl.tokens.tokenize import tokens_of
from fuserl.training.datamodule import Split
from fuserl.training.fused import FusedTexts
from fuserl.training.metrics import Slices, chosen_not_good


@dataclass
class Prepared:
    """A run's data, ready to be packed."""

    objective: Objective
    train: Split
    validation: Split | None
    slices: Slices
    validation_groups: list[PromptGroup]  # as many as the probe asks
    tau: float | None
    fused: FusedTexts | None  # what the training responses are distilled from
    influence: np.ndarray  # [N, K] share of each response in its prompt's pull upwards; rows sum to 1 or 0
    chosen_not_good: float | None = None  # share of the training pairs that prefer an answer that is not good
    cautions: tuple[str, ...] = ()  # said before the first step
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why -> prompt ids, nothing dropped silently


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


def with_copies(units: np.ndarray, store: TokenStore) -> np.ndarray:
    """[N, K] `Objective.units`, those of equal responses joined: they share one log-prob."""
    units, first = np.array(units), np.asarray(store.duplicate_of)
    for column in range(units.shape[1]):
        to = np.take_along_axis(units, np.maximum(first[:, [column]], 0), axis=1)
        same = (units == units[:, [column]]) & (first[:, [column]] >= 0)
        units = np.where(same, to, units)
    return units


def prepare(cfg: DictConfig, template: Template, cache: Path, *, ranks: int, pack_tokens: int) -> Prepared:
    """Read, tokenise, select and plan.

    Args:
        pack_tokens: of a pack, where the configuration leaves it open and no group is larger.

    Raises:
        FuserlError: the data cannot serve the objective, or nothing is left of it.
    """
    sides = sides_of(cfg.data)
    store, held_out = _stores(cfg, sides, template, cache)
    scores = scores_of(store)
    objective, tau = build_objective(cfg, scores, store.sources)
    require_applicable(objective, scores)

    used = np.asarray(objective.select(scores))
    totals = objective.loss(scores, progress=0.0)
    left_out = _bad_rows([store] if sides[0].split == sides[1].split else [store, held_out])
    rows = _learnt_from(cfg, store, used, totals.weight.detach().numpy(), left_out)
    if not len(rows):
        raise FuserlError(
            "no training prompt is left for this objective",
            where=f"`data.path={cfg.data.path}`, objective `{objective.name}`",
            hint="; ".join(f"{len(ids)} x {why}" for why, ids in left_out.items()),
        )

    count = totals.count.detach().numpy()
    fused = _fused(objective, cfg, template, store, used, rows)
    return Prepared(
        objective=objective,
        train=Split(
            store,
            used,
            count,
            _plan(cfg, store, used, rows, ranks, pack_tokens),
            units=None if objective.units is None else with_copies(objective.units(scores).numpy(), store),
            truncate=_truncate(cfg),
            support=fused,
        ),
        validation=_validation(cfg, objective, held_out, ranks, pack_tokens) if len(held_out) else None,
        slices=Slices(tuple(store.sources), tuple(sorted({*store.domain_names, *held_out.domain_names}))),
        validation_groups=list(islice(sides[1].groups(ReadReport()), cfg.probe.prompts)) if len(held_out) else [],
        tau=tau,
        fused=fused,
        influence=influence(objective, scores)[rows],
        chosen_not_good=_chosen_not_good(objective, scores, store, rows, cfg.data.good_reward),
        cautions=cautions(objective),
        left_out=left_out,
    )


def _stores(cfg: DictConfig, sides: Sequence[Side], template: Template, cache: Path) -> tuple[TokenStore, TokenStore]:
    """The tokens of what is trained on and of what is held out, whose sources have the same numbers."""
    store, held_out = (tokens_of(side, template, cache / "tokens", show=cfg.trainer.progress_bar) for side in sides)
    if not len(store):
        raise FuserlError(
            "no training prompt is left",
            where=f"`data.path={cfg.data.path}`, split `{cfg.data.split}`, part {list(cfg.data.part)}",
            hint="widen `data.part`, `data.sources` or `data.limit`, or look at the skipped rows",
        )
    sources = tuple(sorted({*store.sources, *held_out.sources}))
    return store.numbered(sources), held_out.numbered(sources)


def _learnt_from(
    cfg: DictConfig, store: TokenStore, used: np.ndarray, weight: np.ndarray, left_out: dict[str, list[str]]
) -> np.ndarray:
    """[R] rows of the store that fit and weigh something; the ids of the others go to `left_out`.

    Args:
        weight: [N], of each prompt in the loss.
    """
    keep = fitting(store, used, max_length=cfg.data.max_length, on_too_long=cfg.data.on_too_long)
    for prompt_id, why in keep.dropped:
        left_out.setdefault(why, []).append(prompt_id)
    signal = weight[keep.keep] > 0
    if not signal.all():
        left_out["no signal: equal rewards, or too few responses"] = list(store.ids.take(keep.keep[~signal]))
    return keep.keep[signal]


def _fused(
    objective: Objective, cfg: DictConfig, template: Template, store: TokenStore, used: np.ndarray, rows: np.ndarray
) -> FusedTexts | None:
    """The distributions that the objective learns from, where it does."""
    if objective.distillation is None:
        return None
    config = model_config(cfg.target.path, revision=cfg.target.revision).get_text_config()
    return FusedTexts(objective.distillation.path, store, used, rows, template=template, vocabulary=config.vocab_size)


def _bad_rows(stores: Sequence[TokenStore]) -> dict[str, list[str]]:
    """What reading left out, as the stores remember it: what -> where."""
    left_out: dict[str, list[str]] = {}
    for where, what in (skipped for store in stores for skipped in store.notes["skipped"]):
        left_out.setdefault(f"bad row: {what}", []).append(where)
    return left_out


def _chosen_not_good(
    objective: Objective, scores: GroupScores, store: TokenStore, rows: np.ndarray, good_reward: float | None
) -> float | None:
    """Of the objective's pairs in the training prompts."""
    if objective.pairs is None:
        return None
    trained = GroupScores(*(column[rows] for column in scores))
    verdict = torch.from_numpy(np.array(store.verdict, dtype=np.int64))[rows]
    return chosen_not_good(objective.pairs(trained), verdict, trained.rewards, good_reward=good_reward)


def _validation(cfg: DictConfig, objective: Objective, store: TokenStore, ranks: int, pack_tokens: int) -> Split | None:
    """The held-out prompts with what the objective reads, the best response, and every source's best and worst."""
    scores = scores_of(store)
    used = np.array(objective.select(scores), dtype=bool)
    pairs = reported_pairs(objective, scores)(scores)
    chosen, rejected = (
        torch.zeros_like(scores.valid).scatter_reduce(1, side, pairs.valid, "amax")
        for side in (pairs.chosen, pairs.rejected)
    )
    used |= (chosen | rejected).numpy()
    used[np.arange(len(used)), best_response(scores.rewards, scores.valid).numpy()] = True
    rows = fitting(store, used, max_length=cfg.data.max_length, on_too_long="drop").keep
    if not len(rows):
        return None
    count = objective.loss(scores, progress=0.0).count.detach().numpy()
    plan = _plan(cfg, store, used, rows, ranks, pack_tokens, once=True)
    return Split(store, used, count, plan)


def reported_pairs(objective: Objective, scores: GroupScores) -> Callable[[GroupScores], Pairs]:
    """What validation compares: the objective's own pairs, else pairs inside sources, else across them."""
    if objective.pairs is not None:
        return objective.pairs
    inside = bool(best_and_worst_of_each_source(scores).valid.any())
    return best_and_worst_of_each_source if inside else across_sources


def _plan(
    cfg: DictConfig,
    store: TokenStore,
    used: np.ndarray,
    rows: np.ndarray,
    ranks: int,
    pack_tokens: int,
    *,
    once: bool = False,
) -> Plan:
    costs = GroupCosts.of(store, used, rows)
    largest = int(costs.tokens.max())
    max_tokens = max(pack_tokens, largest) if cfg.trainer.max_tokens == "auto" else int(cfg.trainer.max_tokens)
    length = {"epochs": 1} if once else {"epochs": cfg.max_epochs, "max_steps": cfg.max_steps}
    return make_plan(
        costs, batch_size=cfg.batch_size, max_tokens=max_tokens, ranks=ranks, seed=cfg.seed, shuffle=not once, **length
    )


def _truncate(cfg: DictConfig) -> int | None:
    return cfg.data.max_length if cfg.data.on_too_long == "truncate_response" else None

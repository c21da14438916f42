"""Every file of `conf/objective` and `conf/weights` builds what it says, and explains its keys."""

from __future__ import annotations

import inspect

import pytest
import torch
from hydra.utils import get_object, instantiate
from objectives.tables import CONF, NAMES, RULES, objective, random_table
from omegaconf import OmegaConf

from fuserl.objectives.terms import GroupScores

FILES = [
    path for group in ("objective", "weights", "divergence", "share") for path in sorted((CONF / group).glob("*.yaml"))
]
STRUCTURE = (  # keys that speak for themselves
    *("_target_", "_partial_", "name", "reads", "starts_at_ln2", "uses_reference", "pool", "normalize"),
    *("weights", "pairs", "loss", "select", "distillation"),
)


def nodes(tree: object):
    """All mappings of a tree that name a function."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_builds_and_runs(name: str) -> None:
    built = objective(name)
    scores = random_table(1, P=6)
    assert built.name == name
    totals = built.loss(scores, progress=0.5)
    assert (totals.weight > 0).any()
    assert built.select(scores).any()
    assert (built.pairs is None) == name.endswith(("sft", "sft_best", "distill"))
    if built.pairs is not None:
        pairs = built.pairs(scores)
        assert ((pairs.weight > 0) == pairs.valid).all()
        read = built.select(scores)
        assert read.gather(1, pairs.chosen)[pairs.valid].all(), "metrics look at pairs that the loss reads"
        assert read.gather(1, pairs.rejected)[pairs.valid].all()


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_read_exactly_where_it_is_asked_for(name: str) -> None:
    built, scores = objective(name), random_table(1, P=6)
    other = scores._replace(reference_logps=scores.reference_logps - torch.arange(8.0, dtype=torch.float64))
    same = torch.equal(built.loss(scores, progress=0.5).sum, built.loss(other, progress=0.5).sum)
    assert same != built.uses_reference


VARIANTS = [(name,) for name in NAMES] + [
    *(
        ("fusepo_dpo", f"pairs={pairs}", "objective.nll=0.7")
        for pairs in ("per_source", "best_source", "across_sources")
    ),
    ("fusepo_dpo", "objective.normalize=length", "objective.masked=keep", "weights=uniform"),
    ("fusepo_simpo", "objective.nll=0.7", "objective.label_smoothing=0.1"),
    *(("fusepo_rloo", f"objective.baseline={baseline}", "objective.kl=0.3") for baseline in ("source", "prompt")),
    ("fusepo_rloo", "objective.clip=0.2", "objective.nll=0.7"),
]


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_slopes_depend_on_the_units_log_probs_alone(settings: tuple[str, ...]) -> None:
    """What `units` promises, and `linear`: second derivatives vanish outside."""
    built = objective(*settings)
    scores = random_table(3, P=5, absent=0.2)
    logps = scores.reference_logps.nan_to_num() + 0.1 * torch.rand_like(scores.reference_logps)
    for prompt in range(len(logps)):
        one = GroupScores(*(column[[prompt]] for column in scores))

        def loss(row: torch.Tensor, one: GroupScores = one) -> torch.Tensor:
            return built.loss(one._replace(policy_logps=row[None]), progress=0.5).sum.sum()

        curvature = torch.autograd.functional.hessian(loss, logps[prompt])
        read = built.select(one)[0]
        unit = torch.zeros_like(one.source) if built.units is None else built.units(one)
        apart = (unit[0][:, None] != unit[0][None, :]) | (built.linear | ~(read[:, None] & read[None, :]))
        assert (curvature[apart] == 0).all()


def test_units_are_no_larger_than_they_must_be() -> None:
    scores = random_table(3, P=5)
    for name in ("fusepo_dpo", "fusepo_simpo", "fusepo_rloo"):
        built = objective(name)
        assert built.units is not None
        assert (scores.source == scores.source[:, :1]).all(dim=1).logical_not().any(), "prompts with several sources"
        for source, unit in zip(scores.source, built.units(scores), strict=True):
            joined = unit[:, None] == unit[None, :]
            assert not (joined & (source[:, None] != source[None, :])).any()


@pytest.mark.parametrize("rule", RULES)
def test_every_weight_rule_builds_and_runs(rule: str) -> None:
    cfg = OmegaConf.load(CONF / "weights" / f"{rule}.yaml")
    if "tau" in cfg:
        assert cfg.tau == "auto"
        cfg.tau = 1
    scores = random_table(2)
    weights = instantiate(cfg)(scores.rewards, scores.valid, scores.given)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_target_exists_and_takes_these_arguments(path) -> None:
    found = nodes(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    assert not [why for node in found if (why := refusal(node))]


def refusal(node: dict) -> str:
    """Why a target does not take the arguments beside it; empty where it does."""
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    signature = inspect.signature(get_object(node["_target_"]))
    try:
        (signature.bind_partial if node.get("_partial_") else signature.bind)(**arguments)
    except TypeError as error:
        return f"{node['_target_']}: {error}"
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_has_a_comment(path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    bare = [
        line
        for line in lines
        if ":" in line and "#" not in line and not line.strip().startswith(STRUCTURE) and "${.." not in line
    ]
    assert not bare


def test_names_that_users_rely_on() -> None:
    for name in ("dpo_best", "fusepo_dpo", "fusepo_simpo", "wrpo", "wrpo_simpo"):
        assert "beta" in OmegaConf.load(CONF / "objective" / f"{name}.yaml")
    for name in [n for n in NAMES if "sft" not in n and n != "distill"]:
        assert {"nll", "count"} <= set(OmegaConf.load(CONF / "objective" / f"{name}.yaml"))
    assert {"kl", "clip"} <= set(OmegaConf.load(CONF / "objective" / "fusepo_rloo.yaml"))

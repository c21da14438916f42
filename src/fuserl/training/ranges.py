"""The numbers of a training run's configuration, each in its range; looked at before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError

Rule = tuple[Callable[[Any], bool], str]  # whether a value fits, and what would


def _whole(least: int) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least, (
        f"a whole number, {least} or more"
    )


def _number(low: float, high: float = float("inf"), *, said: str) -> Rule:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high, said


def _or(word: Any, rule: Rule) -> Rule:
    fits, said = rule
    return lambda value: value == word or fits(value), f"{said}, or {'null' if word is None else word}"


def _share(value: Any) -> bool:
    ends = [end for end in value if isinstance(end, int | float)] if isinstance(value, list) else []
    return len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1


RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "batch_size": _whole(1),
    "max_epochs": _or(None, _whole(1)),
    "max_steps": _or(None, _whole(1)),
    "optimizer.lr": _number(0, said="a number, 0 or more"),
    "optimizer.eps": _number(0, said="a number, 0 or more"),
    "optimizer.weight_decay": _number(0, said="a number, 0 or more"),
    "optimizer.warmup": _number(0, 1, said="a share from 0 to 1"),
    "optimizer.floor": _number(0, 1, said="a share from 0 to 1"),
    "optimizer.clip": _or(None, _number(0, said="a number, 0 or more")),
    "nonfinite.skips": _whole(0),
    "data.part": (_share, "two numbers from 0 to 1, the first smaller"),
    "data.max_length": _whole(1),
    "probe.prompts": _whole(0),
    "probe.max_new_tokens": _whole(1),
    "probe.temperature": _number(0, said="a number, 0 (greedy) or more"),
    "trainer.devices": _whole(1),
    "trainer.nodes": _whole(1),
    "trainer.max_tokens": _or("auto", _whole(1)),
    "trainer.log_every": _whole(1),
    "trainer.num_workers": _whole(0),
    "trainer.timeout": _number(1e-3, said="seconds, more than 0"),
    "trainer.val_every": _or("auto", _whole(1)),
    "checkpoint.every": _or("auto", _whole(1)),
    "checkpoint.keep": _whole(1),
    "checkpoint.mode": (lambda value: value in ("min", "max"), "min or max"),
    "checkpoint.asynchronous": (lambda value: value in (True, False, "auto"), "true, false or auto"),
    "trainer.logits_memory": _or("auto", _number(1e-6, said="GiB, more than 0")),
    "trainer.first_step_tolerance": _or("auto", _number(0, said="a number, 0 or more")),
}


def require(cfg: DictConfig) -> None:
    """Every number in its range.

    Raises:
        FuserlError: the first that is not, by its name.
    """
    for key, (fits, said) in RULES.items():
        value = OmegaConf.select(cfg, key)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not fits(plain):
            raise FuserlError(f"`{key}` is {plain!r}", where=f"`{key}`", hint=f"it must be {said}")

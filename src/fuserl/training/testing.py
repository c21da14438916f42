"""The test after a run's last step: its prompts, and how they are answered and graded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.evaluation.answering import Score, answers, score_named
from fuserl.models.sharding import first_ones, is_sharded, whole
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.schema import PromptGroup
from fuserl.tokens.templates import Template


def score_of(cfg: DictConfig) -> Score | None:
    """The function that `probe.score` names.

    Raises:
        FuserlError: there is none of that name.
    """
    return score_named(cfg.probe.score, "probe.score")


def tested(
    model: Any, template: Template, groups: Sequence[PromptGroup], cfg: DictConfig, *, first: bool
) -> list[dict[str, Any]]:
    """`test.samples` answers a prompt, drawn and graded as the probe's are; one row an answer.

    Args:
        first: whether this process grades; all that share a model in pieces must call.
    """
    drawing = partial(
        answers,
        model,
        template,
        groups,
        samples=cfg.test.samples,
        max_new_tokens=cfg.probe.max_new_tokens,
        temperature=cfg.probe.temperature,
        seed=cfg.seed,
        score=score_of(cfg) if first else None,
        agree=first_ones if is_sharded(model) else None,
    )
    with torch.no_grad():
        return whole(model, drawing)


def groups_of_test(cfg: DictConfig) -> list[PromptGroup]:
    """The prompts of `test.split`; none where the run has no test.

    Raises:
        FuserlError: there is no such split, or the run trains on it or looks at it; or no answer is asked for.
    """
    split = cfg.test.split
    if split is None:
        return []
    if isinstance(cfg.test.samples, bool) or not isinstance(cfg.test.samples, int) or cfg.test.samples < 1:
        raise FuserlError(
            f"`test.samples` is {cfg.test.samples!r}",
            where="`test.samples`",
            hint="a whole number, 1 or more; `test.split=null` leaves the test out",
        )
    known = splits_of(cfg.data.path)
    if known and split not in known:
        raise FuserlError(
            f"the data has no split `{split}`", where="`test.split`", hint=f"it has {', '.join(sorted(known))}"
        )
    if not known or split in (cfg.data.split, cfg.data.validation_split):
        raise FuserlError(
            f"split `{split}` of `{cfg.data.path}` is one that the run trains on or watches",
            where="`test.split`",
            hint="test on a split of its own, or leave the test out with `test.split=null`",
        )
    form, on_bad_row = cfg.data.format, cfg.data.on_bad_row
    return list(read_groups(cfg.data.path, split=split, form=form, on_bad_row=on_bad_row, report=ReadReport()))

"""Answers to prompts that training never saw, sampled from the policy and graded: how one run is told from another."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_method
from omegaconf import DictConfig

from fuserl.errors import FuserlError
from fuserl.models.generate import sample
from fuserl.records.formats import ReadReport, read_groups, splits_of
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.tokens.templates import Template

Score = Callable[[str, str, str | None], float]


def score_of(cfg: DictConfig) -> Score | None:
    """The function that `probe.score` names.

    Raises:
        FuserlError: there is none of that name.
    """
    if not cfg.probe.score:
        return None
    try:
        return get_method(cfg.probe.score)
    except Exception as error:  # Hydra wraps whatever an import raises
        raise FuserlError(
            f"`{cfg.probe.score}` is no function that can be imported",
            where="`probe.score`",
            hint="give the dotted path of score(prompt, answer, reference) -> float",
        ) from error


def groups_of_test(cfg: DictConfig) -> list[PromptGroup]:
    """The prompts of `test.split`; none where the run has no test.

    Raises:
        FuserlError: the data has no such split, or it is one that the run trains on or looks at.
    """
    split = cfg.test.split
    if split is None:
        return []
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


def answers(
    model: Any,
    template: Template,
    decode: Callable[[list[int]], str],
    groups: Sequence[PromptGroup],
    cfg: DictConfig,
    score: Score | None,
) -> list[dict[str, Any]]:
    """One row an answer, in the order of `groups`.

    Args:
        cfg: `test.samples` answers a prompt, by `probe.max_new_tokens` and `probe.temperature`, from `seed`.
    """
    sampled = sample(
        model,
        [template.encode_prompt(group.prompt) for group in groups],
        n=cfg.test.samples,
        max_new_tokens=cfg.probe.max_new_tokens,
        temperature=cfg.probe.temperature,
        stop_ids=template.stop_ids,
        seed=cfg.seed,
    )
    rows = []
    for group, drawn in zip(groups, sampled, strict=True):
        prompt = group.prompt[-1].content
        for number, tokens in enumerate(drawn):
            finished = bool(tokens) and tokens[-1] in template.stop_ids
            text = decode(tokens[:-1] if finished else tokens)
            rows.append(
                {
                    "prompt_id": group.id,
                    "domain": group.domain,
                    "sample": number,
                    "prompt": prompt,
                    "answer": text,
                    "tokens": len(tokens),
                    "unfinished": float(not finished),
                    "score": score(prompt, text, group.reference) if score else None,
                }
            )
    return rows


def write_answers(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def scores_by_prompt(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """[P] mean score of each prompt's answers, in the order of the rows."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["prompt_id"]].append(row["score"])
    return np.array([float(np.mean(values)) for values in found.values()])


def summary_of_test(rows: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """What `summary.json` keeps: means over all answers; scores are null where nothing graded."""
    graded = rows[0]["score"] is not None
    domains: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        domains[row["domain"]].append(row["score"])
    return {
        "split": split,
        "prompts": len({row["prompt_id"] for row in rows}),
        "samples": 1 + max(row["sample"] for row in rows),
        "score": float(np.mean([row["score"] for row in rows])) if graded else None,
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "unfinished": float(np.mean([row["unfinished"] for row in rows])),
        "by_domain": {name: float(np.mean(values)) for name, values in sorted(domains.items())} if graded else {},
    }

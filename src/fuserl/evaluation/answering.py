"""Answers to prompts that a model never saw, sampled and graded: how one model is told from another."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_method
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.models.generate import sample
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup
from fuserl.tokens.templates import Template

Score = Callable[[str, str, str | None], float]  # (prompt, answer, reference)


def score_named(name: Any, where: str) -> Score | None:
    """The function of a dotted path; None where there is no name.

    Raises:
        FuserlError: there is none of that name.
    """
    if not name:
        return None
    try:
        return get_method(str(name))
    except Exception as error:  # Hydra wraps whatever an import raises
        raise FuserlError(
            f"`{name}` is no function that can be imported",
            where=f"`{where}`",
            hint="give the dotted path of score(prompt, answer, reference) -> float",
        ) from error


def answers(
    model: Any,
    template: Template,
    groups: Sequence[PromptGroup],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    score: Score | None,
    agree: Callable[[Tensor], Tensor] | None = None,
) -> list[dict[str, Any]]:
    """One row an answer, in the order of `groups`.

    Args:
        samples: answers a prompt.
        max_new_tokens, temperature, seed, agree: see `models.generate.sample`.
    """
    sampled = sample(
        model,
        [template.encode_prompt(group.prompt) for group in groups],
        n=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop_ids=template.stop_ids,
        seed=seed,
        agree=agree,
    )
    rows = []
    for group, drawn in zip(groups, sampled, strict=True):
        prompt = group.prompt[-1].content
        for number, tokens in enumerate(drawn):
            finished = bool(tokens) and tokens[-1] in template.stop_ids
            text = template.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
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

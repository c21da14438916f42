"""Run folders as `fuserl train` leaves them, with made-up numbers: seed and prompt effects whose sizes the test knows."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuserl.settings import compose, plain

DOMAINS, SOURCES = ("math", "code"), ("llama", "qwen2")


@cache
def settings() -> dict[str, Any]:
    """Of a real run."""
    return plain(compose("train", ["logger=csv"]))


def write_run(
    folder: Path,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    *,
    scores: np.ndarray | None = None,
    nll: float = 1.0,
    domains: Sequence[str] = DOMAINS,
    sources: Sequence[str] = SOURCES,
    texts: Sequence[str] = ("42",),
) -> Path:
    """One complete run.

    Args:
        given: dotted settings that differ from a real run's.
        scores: [prompts] of the test; None: the run has no test.
        nll: of the validation at the end.
        texts: what stands in answers and prompts, in turn.
    """
    folder.mkdir(parents=True)
    config = copy.deepcopy(settings())
    for key, value in ({"seed": seed, "output": str(folder)} | dict(given or {})).items():
        *above, last = key.split(".")
        node = config
        for name in above:
            node = node[name]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    rows = list(_rows(np.random.default_rng(seed), nll, domains, sources))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *dict.fromkeys(k for row in rows for k in row if k != "step")])
        writer.writeheader()
        writer.writerows(rows)
    if scores is not None:
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, _answers(scores, domains, texts))) + "\n")
    summary = {
        "objective": (given or {}).get("objective.name", "fusesft"),
        "seed": seed,
        "train_seconds": 10.0 + seed,
        "weight_entropy": 0.9 + 0.1 * seed,
        "weight_by_source": {name: 1 / len(sources) for name in sources},
        "test": None if scores is None else {"score": float(np.mean(scores))},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _rows(rng: np.random.Generator, nll: float, domains: Sequence[str], sources: Sequence[str]):
    for step in range(0, 41, 5):
        progress = step / 40
        value = nll + 0.6 * (1 - progress) ** 2 + 0.01 * rng.normal() * (step > 0)
        row: dict[str, Any] = {"step": step, "val/nll": value, "val/accuracy": 0.5 + 0.3 * progress}
        row |= {"val/chosen_logps": -20 - 4 * progress, "val/rejected_logps": -21 - 12 * progress}
        row |= {"val/margin": 6 * progress + 0.2 * rng.normal(), "probe/score": 0.2 + 0.5 * progress}
        row |= {"probe/tokens": 20 + 15 * progress + rng.normal()}
        for name in sources:
            row |= {
                f"val/accuracy/source/{name}": 0.6 + 0.1 * rng.random(),
                f"val/margin/source/{name}": 4 + rng.random(),
            }
        row |= {f"val/nll/domain/{name}": value + 0.1 * rng.normal() for name in domains}
        if step:
            row |= {"train/nll": value - 0.2 * progress, "train/loss": value}
        yield row


def _answers(scores: np.ndarray, domains: Sequence[str], texts: Sequence[str]):
    for number, score in enumerate(scores):
        yield {
            "prompt_id": f"p{number}",
            "domain": domains[number % len(domains)],
            "sample": 0,
            "prompt": texts[(number + 1) % len(texts)],
            "answer": texts[number % len(texts)],
            "tokens": 5 + number % 7,
            "unfinished": 0.0,
            "score": float(score),
        }


def study(folder: Path, *, num_prompts: int = 60, effect: float = 0.08) -> Path:
    """Two objectives at two temperatures and a baseline, three seeds each, a failed run and an unfinished one."""
    rng = np.random.default_rng(0)
    prompt = rng.normal(0, 0.15, num_prompts)
    plan = [
        ("sft_best", "auto", 0.0),
        *((o, t, effect * (1 + (t > 0.5))) for o in ("fusesft", "fusepo_dpo") for t in (0.1, 1.0)),
    ]
    for number, (objective, tau, gain) in enumerate(plan):
        for seed in range(3):
            scores = 0.45 + gain + 0.02 * rng.normal() + prompt + 0.1 * rng.normal(size=num_prompts)
            given = {"objective.name": objective, "weights.tau": tau, "objective.loss.weights.tau": tau}
            texts = [f"answer {number} of {objective}\nsecond line", f"What is {number} + {seed}?"]
            write_run(folder / f"{objective}-{tau}-{seed}", seed, given, scores=scores, nll=1.0 - gain, texts=texts)
    for name, failure in (("failed", {"error": "there is no data", "where": "data.path"}), ("unfinished", None)):
        left = write_run(folder / name, 7)
        (left / "summary.json").unlink()
        if failure:
            (left / "failure.json").write_text(json.dumps(failure))
    return folder

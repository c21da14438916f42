"""What the tests of `select` share: a world of scored groups with known flaws, tables for training, the verb."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fuserl.curation.select import select
from fuserl.objectives.terms import GroupScores
from fuserl.records.formats import read_groups
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.settings import compose

WORDS = [
    f"{head}{tail}"
    for head in ("ri", "sto", "clou", "lam", "gar", "win", "cop")
    for tail in ("ver", "ne", "den", "per", "ter", "gle")
]
SOURCES = ("alder", "birch", "cedar", "dogwood")
DOMAINS = ("instruction", "math", "code", "chinese")


def text(rng: random.Random, words: int) -> str:
    """Words that nobody said before."""
    return " ".join(rng.choices(WORDS, k=words)) + f" {rng.getrandbits(48):x}"


def group(number: int, *, sources: Sequence[str] = SOURCES, samples: int = 5) -> PromptGroup:
    """A prompt with flaws that its number decides: empty, cut and refusing responses, ties, unscored ones."""
    rng = random.Random(number)
    domain = DOMAINS[number % 4]
    responses = [
        _response(rng, source, sample, domain, number)
        for source in sources
        for sample in range(1 if domain == "chinese" else samples)
    ]
    asked = "Tell me: " + text(rng, 12)
    return PromptGroup(f"q{number}", (Message("user", asked),), tuple(responses), domain)


def _response(rng: random.Random, source: str, sample: int, domain: str, number: int) -> Response:
    said, reason = text(rng, 25), "stop"
    if number % 17 == 3 and sample == 1:
        said = ""
    elif number % 19 == 4 and sample == 2:
        reason = "length"
    elif number % 23 == 5 and sample == 0:
        said = "I'm sorry, but I can't help with that."
    reward = None if domain == "chinese" else round(rng.gauss(0.15, 0.03), 2 if number % 3 else 4)
    verdict = rng.choice(("right", "wrong", "wrong", "unknown")) if domain in ("math", "code") else None
    return Response(
        source, said, sample, reward, verdict, finish_reason=reason, extra={"response_tokens": len(said) // 4}
    )


def world(prompts: int, **shape: Any) -> list[PromptGroup]:
    """So many groups; every 50th prompt is said twice, once more loudly."""
    groups = [group(number, **shape) for number in range(prompts)]
    for number in range(0, prompts, 50):
        shouted = tuple(Message(turn.role, turn.content.upper()) for turn in groups[number].prompt)
        groups.append(
            PromptGroup(f"again{number}", shouted, group(number + 10**6, **shape).responses, groups[number].domain)
        )
    return groups


def row(one: PromptGroup) -> dict[str, Any]:
    """As a line of a file of rows."""
    keys = ("source", "text", "sample", "reward", "verdict", "finish_reason")
    return {
        "prompt_id": one.id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in one.prompt],
        "domain": one.domain,
        "responses": [{key: getattr(r, key) for key in keys} | dict(r.extra) for r in one.responses],
    } | dict(one.extra)


def lay(groups: Iterable[PromptGroup], path: Path) -> Path:
    """Write a file of rows."""
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row(one)) + "\n" for one in groups)
    return path


def run(*overrides: str) -> Path:
    """`fuserl select` with these settings."""
    return select(compose("select", list(overrides)))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def contents(folder: Path) -> dict[str, str]:
    """Every file of data that a selection left, by its bytes; the page and the report name paths."""
    kept = [path for path in sorted(folder.rglob("*")) if path.suffix in (".parquet", ".jsonl")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def groups_of(folder: Path) -> list[PromptGroup]:
    return list(read_groups(folder)) if folder.exists() else []


def of_rewards(rows: dict[str, list[float | None]], verdicts: str = "", domain: str = "math") -> PromptGroup:
    """A group by its rewards; verdicts as letters r, w, u or a dot for none, a response each."""
    letters = {"r": "right", "w": "wrong", "u": "unknown", ".": None}
    flat = [(source, sample, reward) for source, of in rows.items() for sample, reward in enumerate(of)]
    marks = verdicts or "." * len(flat)
    responses = tuple(
        Response(source, f"{source} says {sample}", sample, reward, letters[mark])
        for (source, sample, reward), mark in zip(flat, marks, strict=True)
    )
    return PromptGroup("g", (Message("user", "?"),), responses, domain)


def table_of(one: PromptGroup, sources: Sequence[str] | None = None) -> GroupScores:
    """What training makes of a group: a table with one prompt."""
    names = sorted({r.source for r in one.responses}) if sources is None else list(sources)
    shape = (1, len(one.responses))
    rewards = [float("nan") if r.reward is None else r.reward for r in one.responses]
    zeros = torch.zeros(shape, dtype=torch.float64)
    return GroupScores(
        policy_logps=zeros,
        reference_logps=zeros,
        num_tokens=torch.ones(shape, dtype=torch.int64),
        rewards=torch.tensor([rewards], dtype=torch.float64),
        source=torch.tensor([[names.index(r.source) for r in one.responses]]),
        given=torch.full(shape, float("nan"), dtype=torch.float64),
        valid=torch.ones(shape, dtype=torch.bool),
    )

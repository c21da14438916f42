"""Counts that add up: what went into every step of `select`, what was dropped there, what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fuserl.curation.sifting import Counts
from fuserl.errors import FuserlError

Rows = Sequence[Sequence[Any]]


def of_rules(facts: Mapping[str, Any], counts: Mapping[str, Counts], clean: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a step, from reading to the last rule: see `_entry`.

    Args:
        facts: of the inputs (`gather`).
        counts: what each rule dropped, in order.
        clean: what was counted afterwards, when all rules were done: {"prompts": ..., "responses": ...}.

    Raises:
        FuserlError: what goes in less what was dropped is not what was counted. It would be a mistake in `select`.
    """
    prompts = Counter(dict(facts["prompts"]))
    responses = Counter({(domain, source): number for domain, source, number in facts["responses"]})
    joined = Counts(
        Counter(dict(facts["prompts_joined"])),
        Counter({(domain, source): number for domain, source, number in facts["responses_twice"]}),
    )
    found = []
    for name, dropped in {"joining inputs": joined, **counts}.items():
        found.append(_entry(name, prompts, responses, dropped))
        prompts = prompts - dropped.prompts
        responses = responses - dropped.responses - dropped.with_prompt
    counted = {(domain, source): n for domain, of in clean["responses"].items() for source, n in of.items()}
    if +prompts != Counter(clean["prompts"]) or +responses != Counter(counted):
        raise FuserlError(
            "the counts of the rules do not add up to what is left",
            hint="this is a mistake in `fuserl select`: please report it with the folder's `config.yaml`",
        )
    return found


def _entry(name: str, prompts: Counter, responses: Counter, dropped: Counts) -> dict[str, Any]:
    """`prompts`: domain -> [in, dropped, out]; `responses`: domain -> source -> [in, dropped, gone with their prompt, out]."""
    by_source: dict[str, dict[str, list[int]]] = {}
    for (domain, source), number in sorted(responses.items()):
        own, together = dropped.responses[domain, source], dropped.with_prompt[domain, source]
        by_source.setdefault(domain, {})[source] = [number, own, together, number - own - together]
    by_domain = {
        domain: [number, dropped.prompts[domain], number - dropped.prompts[domain]]
        for domain, number in sorted(prompts.items())
    }
    return {"step": name, "prompts": by_domain, "responses": by_source}


def totals(entry: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """([in, dropped, out] of prompts, [in, dropped, gone with their prompt, out] of responses) over all domains."""
    prompts = [sum(column) for column in zip(*entry["prompts"].values(), strict=True)] or [0] * 3
    rows = [row for of in entry["responses"].values() for row in of.values()]
    return prompts, [sum(column) for column in zip(*rows, strict=True)] or [0] * 4

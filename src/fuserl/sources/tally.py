"""Counts of what came back, read off the groups as they pass, and what in them should make one stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from fuserl.records.schema import PromptGroup, Response
from fuserl.records.splits import prompt_digest
from fuserl.sources.asked import Asked

OFTEN = 0.5  # share of prompts with nothing but identical samples above which one is warned


@dataclass
class Counts:
    """One source's answers; repeated prompts count once."""

    answers: int = 0
    missing: int = 0  # samples that were asked for and have no answer
    truncated: int = 0  # cut at max_tokens
    empty: int = 0  # no text, or nothing but white space
    identical: int = 0  # samples that repeat an earlier sample of their prompt
    prompts_of_several: int = 0  # with two samples or more
    prompts_of_identical: int = 0  # of these, with nothing but one text
    prompt_tokens: int = 0
    response_tokens: int = 0
    cost: float | None = None  # where the engine knows it, in its unit
    template_hashes: list[str] = field(default_factory=list)  # of the templates that rendered the prompts
    drawn_otherwise: dict[str, int] = field(default_factory=dict)  # parameter -> answers where it is not as asked

    def add(self, responses: list[Response], samples: int, wanted: Mapping[str, Any]) -> None:
        """Count one prompt's answers.

        Args:
            samples: how many were asked for.
            wanted: sampling parameters as they were asked for.
        """
        self.answers += len(responses)
        self.missing += samples - len(responses)
        texts = Counter(response.text for response in responses)
        self.identical += len(responses) - len(texts)
        self.prompts_of_several += len(responses) > 1
        self.prompts_of_identical += len(responses) > 1 and len(texts) == 1
        for response in responses:
            self.truncated += response.finish_reason == "length"
            self.empty += not response.text.strip()
            self._add_extra(response.extra)
            self._compare(wanted, response.sampling or {})

    def _add_extra(self, extra: Mapping[str, Any]) -> None:
        self.prompt_tokens += extra.get("prompt_tokens") or 0
        self.response_tokens += extra.get("response_tokens") or 0
        if isinstance(extra.get("cost"), int | float):
            self.cost = (self.cost or 0.0) + extra["cost"]
        template = extra.get("template_hash")
        if template and template not in self.template_hashes:
            self.template_hashes.append(template)

    def _compare(self, wanted: Mapping[str, Any], used: Mapping[str, Any]) -> None:
        for key, value in wanted.items():
            shorter = key == "max_tokens" and isinstance(used.get(key), int) and used[key] < value  # the context's end
            if key in used and used[key] != value and not shorter:
                self.drawn_otherwise[key] = self.drawn_otherwise.get(key, 0) + 1


class Tally:
    """Counts groups on their way into the data set."""

    def __init__(self, asked: Mapping[str, Asked]) -> None:
        self.asked = asked
        self.counts = {name: Counts() for name in asked}
        self.left_out = 0  # prompts without any answer
        self._wanted = {
            name: one.source.sampling.plain() | {"stop": list(one.source.sampling.stop)} for name, one in asked.items()
        }
        self._seen: set[bytes] = set()

    def watch(self, groups: Iterable[PromptGroup]) -> Iterator[PromptGroup]:
        """Pass groups on, but those without an answer."""
        for group in groups:
            prompt = bytes.fromhex(prompt_digest(group.prompt))
            if prompt not in self._seen:
                self._seen.add(prompt)
                self._count(group)
            if group.responses:
                yield group
            else:
                self.left_out += 1

    def _count(self, group: PromptGroup) -> None:
        by_source: dict[str, list[Response]] = {name: [] for name in self.asked}
        for response in group.responses:
            if response.source in by_source:  # not one that came with the prompt
                by_source[response.source].append(response)
        for name, responses in by_source.items():
            self.counts[name].add(responses, self.asked[name].source.samples_of(group.domain), self._wanted[name])

    def plain(self) -> dict[str, dict[str, Any]]:
        """Counts by source, for the manifest."""
        return {name: asdict(counts) for name, counts in self.counts.items()}

    def table(self) -> Table:
        """What a person wants to see: a row a source."""
        table = Table(title="answers", title_justify="left")
        table.add_column("source")
        for name in ("answers", "missing", "truncated", "empty", "identical", "tokens an answer", "cost"):
            table.add_column(name, justify="right")
        for name, counts in self.counts.items():
            mean = counts.response_tokens / counts.answers if counts.answers else 0.0
            numbers = (counts.answers, counts.missing, counts.truncated, counts.empty, counts.identical)
            cost = "" if counts.cost is None else f"{counts.cost:,.4g}"
            table.add_row(Text(name), *(f"{number:,}" for number in numbers), f"{mean:,.1f}", cost)
        return table

    def warnings(self) -> list[str]:
        """What in the counts should make one look before going on."""
        return [warning for name, counts in self.counts.items() for warning in _warnings(name, counts, self.asked)]


def _warnings(name: str, counts: Counts, asked: Mapping[str, Asked]) -> Iterator[str]:
    sampling = asked[name].source.sampling
    if counts.prompts_of_several and counts.prompts_of_identical > OFTEN * counts.prompts_of_several:
        many = f"{counts.prompts_of_identical:,} of {counts.prompts_of_several:,} prompts"
        why = (
            "temperature 0 is greedy: one sample says all"
            if sampling.temperature == 0
            else f"temperature {sampling.temperature} should vary them; does the engine ignore seeds?"
        )
        yield f"warning: all samples of `{name}` are identical in {many} ({why})"
    if len(counts.template_hashes) > 1:
        yield f"warning: the prompts of `{name}` were rendered by {len(counts.template_hashes)} different templates"
    for key, number in counts.drawn_otherwise.items():
        yield f"warning: {number:,} answers of `{name}` were drawn with another {key} than {getattr(sampling, key)!r}"

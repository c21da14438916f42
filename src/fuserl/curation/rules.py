"""What a rule of `fuserl select` is asked and what it answers; every rule speaks this and nothing else.

A rule is an object picked by configuration. It names a reason to drop, or None to keep; it drops nothing itself, and
what it says is the same on every run. One that looks at a response alone is a function of it; one that compares reads
the whole stream first (`fit`), in bounded memory, and is then asked group by group, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fuserl.records.schema import PromptGroup, Response


class Dropped(NamedTuple):
    """One thing that a rule dropped, for the report."""

    rule: str
    prompt_id: str
    source: str | None  # None: the whole prompt
    sample: int | None  # None: the whole prompt
    why: str  # short; a text in it is cut and on one line (`texts.excerpt`), but not escaped for HTML


class Found(NamedTuple):
    """What a corpus rule says of one group."""

    prompt: str | None = None  # why the whole prompt goes; None: it stays
    responses: Mapping[int, str] = {}  # place in `group.responses` -> why this one goes


@runtime_checkable
class ResponseRule(Protocol):
    """Judges one response at a time."""

    name: str

    def __call__(self, group: PromptGroup, response: Response) -> str | None:
        """Why the response goes, None: it stays."""
        ...


@runtime_checkable
class CorpusRule(Protocol):
    """Judges groups against each other, or against other texts."""

    name: str

    def fit(self, groups: Iterable[PromptGroup]) -> None:
        """Read what the rules before this one have left.

        Args:
            groups: can be read more than once; every reading gives the same groups in the same order. Ids are unique.
        """
        ...

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """Tables for the report, by name: rows of plain values. Asked after `fit`, written before anything is dropped."""
        ...

    def __call__(self, group: PromptGroup) -> Found:
        """What goes of a group that `fit` has read."""
        ...


def sifted(rule: ResponseRule | CorpusRule, group: PromptGroup) -> tuple[PromptGroup | None, list[Dropped]]:
    """What a rule leaves of a group, and what it dropped. A prompt that has lost its last response goes too."""
    if isinstance(rule, CorpusRule):
        found = rule(group)
    else:
        reasons = ((place, rule(group, response)) for place, response in enumerate(group.responses))
        found = Found(None, {place: why for place, why in reasons if why is not None})
    if found.prompt is not None:
        return None, [Dropped(rule.name, group.id, None, None, found.prompt)]
    if not found.responses:
        return group, []
    judged = [(group.responses[place], why) for place, why in sorted(found.responses.items())]
    dropped = [Dropped(rule.name, group.id, one.source, one.sample, why) for one, why in judged]
    left = tuple(one for place, one in enumerate(group.responses) if place not in found.responses)
    if not left:
        return None, [*dropped, Dropped(rule.name, group.id, None, None, "no response is left")]
    return replace(group, responses=left), dropped

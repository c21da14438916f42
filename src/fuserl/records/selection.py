"""Which sources a data set has, and keeping some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup


def sources_of(groups: Iterable[PromptGroup]) -> tuple[str, ...]:
    """Names of all sources, sorted."""
    return tuple(sorted({response.source for group in groups for response in group.responses}))


def require_sources(groups: Iterable[PromptGroup], names: Iterable[str]) -> None:
    """Read until every one of these sources has been seen.

    Raises:
        FuserlError: a name is no source of the data.
    """
    seen: set[str] = set()
    unknown = set(names)
    for group in groups:
        seen.update(response.source for response in group.responses)
        unknown -= seen
        if not unknown:
            return
    if unknown:
        raise FuserlError(
            f"the data has no source {', '.join(f'`{name}`' for name in sorted(unknown))}",
            where="`data.sources`",
            hint=f"its sources are {', '.join(sorted(seen))}",
        )


def keep_sources(groups: Iterable[PromptGroup], names: Sequence[str]) -> Iterator[PromptGroup]:
    """The groups with these sources' responses only; groups that keep none are left out."""
    for group in groups:
        kept = tuple(response for response in group.responses if response.source in names)
        if kept:
            yield replace(group, responses=kept)

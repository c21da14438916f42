"""Which sources a data set has, and keeping some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup


def sources_of(groups: Iterable[PromptGroup]) -> tuple[str, ...]:
    """Names of all sources, sorted."""
    return tuple(sorted({response.source for group in groups for response in group.responses}))


def keep_sources(groups: Iterable[PromptGroup], names: Sequence[str]) -> Iterator[PromptGroup]:
    """The groups with these sources' responses only; groups that keep none are left out.

    Raises:
        FuserlError: a name is no source of the data.
    """
    groups = list(groups)
    unknown = sorted(set(names) - set(sources := sources_of(groups)))
    if unknown:
        raise FuserlError(
            f"the data has no source {', '.join(f'`{name}`' for name in unknown)}",
            where="`data.sources`",
            hint=f"its sources are {', '.join(sources)}",
        )
    for group in groups:
        kept = tuple(response for response in group.responses if response.source in names)
        if kept:
            yield replace(group, responses=kept)

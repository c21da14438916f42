"""How much of what: counts or shares of domains or inputs, met by taking prompts in the order of their hash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuserl.curation.gather import INPUT
from fuserl.curation.texts import excerpt
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup
from fuserl.records.splits import unit


@dataclass(frozen=True)
class Mixture:
    """What a side of the training data shall consist of."""

    by: str  # domain, or input
    counts: Mapping[str, int] | None  # name -> prompts
    shares: Mapping[str, float] | None  # name -> share of all prompts; either counts or shares are given
    total: int | None  # prompts, where shares are given; None: as many as nothing has to be repeated for
    repeat: bool  # give prompts again where there are too few

    @classmethod
    def of(cls, by: str, asked: Any, total: int | None, *, repeat: bool, where: str) -> Mixture:
        """From the configuration: whole numbers are prompts, fractions are shares.

        Raises:
            FuserlError: it is neither, or both, or the shares do not sum to 1.
        """
        if by not in ("domain", "input"):
            raise FuserlError(f"`{by}` is nothing to mix by", where="`mixture.by`", hint="domain or input")
        hint = f"`{where}={{math: 1000, code: 500}}` in prompts, or `{where}={{math: 0.7, code: 0.3}}` in shares"
        numbers = list(asked.values()) if isinstance(asked, Mapping) else []
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or n < 0 for n in numbers):
            raise FuserlError("a mixture maps names to numbers", where=f"`{where}`", hint=hint)
        if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 1):
            raise FuserlError(f"`{total}` is no number of prompts", where=f"`{where}_total`", hint="1 or more")
        if all(isinstance(number, int) for number in numbers):
            if total is not None:
                raise FuserlError("counts have their total already", where=f"`{where}_total`", hint=hint)
            return cls(by, dict(asked), None, None, repeat)
        if any(isinstance(number, int) for number in numbers) or not math.isclose(sum(numbers), 1.0, abs_tol=1e-6):
            raise FuserlError(
                f"the shares of a mixture sum to 1, these to {sum(numbers):g}", where=f"`{where}`", hint=hint
            )
        if repeat and total is None:
            raise FuserlError(
                "with repetition shares need a total", where=f"`{where}_total`", hint="a number of prompts"
            )
        return cls(by, None, dict(asked), total, repeat)

    @property
    def named(self) -> list[str]:
        """The parts that some prompts are asked of."""
        return sorted(name for name, number in (self.counts or self.shares or {}).items() if number)

    def part_of(self, group: PromptGroup) -> str:
        """The name that the group counts under."""
        return group.domain if self.by == "domain" else str(group.extra.get(INPUT, ""))

    def wanted(self, there: Mapping[str, int]) -> dict[str, int]:
        """Prompts of every part that are asked for, given how many there are; parts that are not named are not.

        Raises:
            FuserlError: a part that is asked for is not there at all.
        """
        absent = [name for name in self.named if not there.get(name)]
        if absent:
            raise FuserlError(
                f"no prompt of `{absent[0]}` is left for the mixture",
                where=f"`mixture`, by {self.by}",
                hint=f"there are {', '.join(f'{n} of `{excerpt(name)}`' for name, n in sorted(there.items())) or 'none'}",
            )
        if self.counts is not None:
            return dict(self.counts)
        shares = {name: share for name, share in (self.shares or {}).items() if share}
        total = self.total or math.floor(min(there[name] / share for name, share in shares.items()) + 1e-9)
        return whole({name: total * share for name, share in shares.items()}, total)


def whole(parts: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers near these that sum to the total: what is lost in rounding down goes to the largest remainders.

    >>> whole({"math": 3.5, "code": 3.5, "chat": 3.0}, 10)
    {'math': 3, 'code': 4, 'chat': 3}
    """
    found = {name: math.floor(number + 1e-9) for name, number in parts.items()}
    by_remainder = sorted(parts, key=lambda name: (found[name] - parts[name], name))
    for name in by_remainder[: max(0, total - sum(found.values()))]:
        found[name] += 1
    return found


@dataclass(frozen=True)
class Quota:
    """How often each prompt of a part is given."""

    asked: int  # prompts
    there: int
    given: int  # repetitions counted
    times: int  # every prompt at least so often
    limit: tuple[float, str]  # prompts up to this place in the order of hashes once more


def quotas(mixture: Mixture, places: Mapping[str, list[tuple[float, str]]]) -> dict[str, Quota]:
    """What of each part is taken.

    Args:
        places: part -> `place_of` of every prompt there is.
    """
    wanted = mixture.wanted({name: len(found) for name, found in places.items()})
    taken = {}
    for name in sorted(wanted.keys() | places.keys()):
        found, asked = sorted(places.get(name, [])), wanted.get(name, 0)
        times, rest = divmod(asked, len(found)) if found and mixture.repeat else (0, min(asked, len(found)))
        limit = found[rest - 1] if rest else (-1.0, "")
        taken[name] = Quota(asked, len(found), times * len(found) + rest, times, limit)
    return taken


def place_of(prompt_id: str) -> tuple[float, str]:
    """Where a prompt stands when some of its part are taken."""
    return unit(prompt_id, "mixture"), prompt_id


def taken(mixture: Mixture, quota: Mapping[str, Quota], groups: Iterable[PromptGroup]) -> Iterator[PromptGroup]:
    """The groups as often as they are given; the second time on with a number behind their id."""
    for group in groups:
        own = quota[mixture.part_of(group)]
        for time in range(own.times + (place_of(group.id) <= own.limit)):
            yield replace(group, id=f"{group.id}#{time + 1}") if time else group

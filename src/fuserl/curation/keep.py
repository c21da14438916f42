"""What of a prompt's responses a stage of training gets: SFT's pool, or the sides of preferences.

Every way to keep is a pure function of a group, picked by configuration (`conf/sft`, `conf/po`). Ties go to the first
response; in what `select` reads, responses stand by source and sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fuserl.curation.pairs import EQUAL, UNSCORED, Pair, Sides, Window, by_source, of_verdict, reward_at, scored
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a group, by place in `group.responses`."""

    places: tuple[int, ...] = ()  # rising; none: the prompt goes
    pairs: tuple[Pair, ...] = ()  # who is set against whom, where the protocol has pairs
    why: str | None = None  # why the prompt goes: one of few texts, so that they can be counted
    without: Counter[str] = field(default_factory=Counter)  # why sources have no pair -> how many, for the report

    def of(self, group: PromptGroup) -> PromptGroup:
        """The group with these responses alone."""
        return replace(group, responses=tuple(group.responses[place] for place in self.places))


Keep = Callable[[PromptGroup], Kept]


@dataclass(frozen=True)
class Answers:
    """Which responses SFT may learn from."""

    verdict: str = "any"  # any, or right: verified as right
    sources: Sequence[str] | None = None  # of these sources only; None: of all
    without: Sequence[str] | None = None  # of all but these

    def __post_init__(self) -> None:
        if self.verdict not in ("any", "right"):
            raise FuserlError(f"`{self.verdict}` is no choice of `verdict`", where="`sft.verdict`", hint="any or right")
        for key in ("sources", "without"):
            if isinstance(names := getattr(self, key), str):
                raise FuserlError(f"`{key}` is a list", where=f"`sft.{key}`", hint=f"`sft.{key}=[{names}]`")

    def of(self, group: PromptGroup) -> tuple[list[int], str]:
        """Their places, and what is missing where none of them can be taken."""
        own = {source: places for source, places in by_source(group).items() if self.takes(source)}
        there = sorted(place for places in own.values() for place in places)
        if not there:
            return [], "none of the sources asked for answered"
        return list(of_verdict(group, there, self.verdict)), f"no response is {self.verdict}"

    def takes(self, source: str) -> bool:
        """Whether this source is one of those."""
        return (self.sources is None or source in self.sources) and source not in (self.without or ())


@dataclass(frozen=True)
class Top:
    """The best responses over all sources: 1 for SFT on the best (FuseChat-3.0), 4 for FuseSFT's pool.

    Where nothing has to be chosen, rewards are not needed; where something has, unscored responses are left out.

    Raises:
        FuserlError: a setting is out of its range.
    """

    size: int  # responses at most
    verdict: str
    sources: Sequence[str] | None
    without: Sequence[str] | None

    def __post_init__(self) -> None:
        Answers(self.verdict, self.sources, self.without)
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise FuserlError(f"`{self.size}` is no number of responses", where="`sft.size`", hint="a number from 1")

    def __call__(self, group: PromptGroup) -> Kept:
        """The places of the best."""
        fitting, missing = Answers(self.verdict, self.sources, self.without).of(group)
        if not fitting:
            return Kept(why=missing)
        places = _best(group, fitting, self.size)
        return Kept(tuple(sorted(places))) if places else Kept(why=UNSCORED)


@dataclass(frozen=True)
class PerSource:
    """The best response of every source, or its only one: FuseSFT's other pool.

    Raises:
        FuserlError: a setting is out of its range.
    """

    verdict: str
    sources: Sequence[str] | None
    without: Sequence[str] | None

    def __post_init__(self) -> None:
        Answers(self.verdict, self.sources, self.without)

    def __call__(self, group: PromptGroup) -> Kept:
        """One place a source that has something to give."""
        fitting, missing = Answers(self.verdict, self.sources, self.without).of(group)
        if not fitting:
            return Kept(why=missing)
        own = [[place for place in places if place in fitting] for places in by_source(group).values()]
        places = sorted(place for of_source in own for place in _best(group, of_source, 1))
        return Kept(tuple(places)) if places else Kept(why=UNSCORED)


@dataclass(frozen=True)
class Everything:
    """All responses, those of a verdict where one is asked for.

    Raises:
        FuserlError: a setting is out of its range.
    """

    verdict: str
    sources: Sequence[str] | None
    without: Sequence[str] | None

    def __post_init__(self) -> None:
        Answers(self.verdict, self.sources, self.without)

    def __call__(self, group: PromptGroup) -> Kept:
        """Their places."""
        fitting, missing = Answers(self.verdict, self.sources, self.without).of(group)
        return Kept(tuple(fitting)) if fitting else Kept(why=missing)


@dataclass(frozen=True)
class Pairs:
    """The best and the worst response of one source, of every source, or of all of them together.

    `best_source` takes the source of the best response that may be chosen and no other, so one pair a prompt
    (FuseChat-3.0, arXiv:2503.04222); `per_source` a pair of every source that has one (FuseRL, arXiv:2504.06562);
    `across_sources` one pair a prompt, whoever wrote its sides. They are the files of `conf/pairs` to train with.

    Raises:
        FuserlError: a setting is out of its range.
    """

    among: str  # best_source, per_source, across_sources
    chosen: str  # any, or right: verified as right
    rejected: str  # any, or wrong: verified as wrong
    min_gap: float | int | None  # reward units, itself allowed; None: no limit
    max_gap: float | int | None

    def __post_init__(self) -> None:
        self._sides()
        if self.among not in AMONG:
            raise FuserlError(f"`{self.among}` is no choice", where="`po.among`", hint=f"one of {', '.join(AMONG)}")

    def __call__(self, group: PromptGroup) -> Kept:
        """The places of all pairs; a group without any goes for the reason of its first source."""
        sides = self._sides()
        found = [sides.pair(group, places) for places in AMONG[self.among](group, sides)]
        pairs = tuple(one for one in found if isinstance(one, Pair))
        reasons = [one for one in found if isinstance(one, str)]
        if not pairs:
            return Kept(why=reasons[0], without=Counter(reasons))
        return Kept(tuple(sorted(place for pair in pairs for place in pair)), pairs, without=Counter(reasons))

    def _sides(self) -> Sides:
        return Sides(self.chosen, self.rejected, Window(self.min_gap, self.max_gap))


@dataclass(frozen=True)
class Groups:
    """All scored samples of every source, where at least one source's rewards differ: FusePO-RLOO's groups."""

    def __call__(self, group: PromptGroup) -> Kept:
        """Their places."""
        own = [list(scored(group, places)) for places in by_source(group).values()]
        if not any(own):
            return Kept(why=UNSCORED)
        if all(len({reward_at(group, place) for place in places}) < 2 for places in own):
            return Kept(why=EQUAL)
        return Kept(tuple(sorted(place for places in own for place in places)))


@dataclass(frozen=True)
class Quadruple:
    """A source's best, and the target's own best and worst: WRPO's quadruple, with the prompt (arXiv:2412.03187).

    The data holds the target's own samples as one more source; train with the same `target_source`.

    Raises:
        FuserlError: the window is empty.
    """

    target: str  # the source name of the target's own samples
    min_gap: float | int | None  # between the target's best and worst, reward units, itself allowed; None: no limit
    max_gap: float | int | None

    def __post_init__(self) -> None:
        Window(self.min_gap, self.max_gap)

    def __call__(self, group: PromptGroup) -> Kept:
        """The three places, the pair being the target's."""
        others = by_source(group)
        own = others.pop(self.target, [])
        if not own:
            return Kept(why="the target has not answered")
        rivals = list(scored(group, (place for places in others.values() for place in places)))
        if not rivals:
            return Kept(why="no source has a scored response")
        pair = Sides("any", "any", Window(self.min_gap, self.max_gap)).pair(group, own)
        if isinstance(pair, str):
            return Kept(why=pair)
        return Kept(tuple(sorted((_best(group, sorted(rivals), 1)[0], *pair))), (pair,))


def _best(group: PromptGroup, places: Sequence[int], size: int) -> list[int]:
    """The `size` places of highest reward, first of equals; all of them, scored or not, where there are no more."""
    if len(places) <= size:
        return list(places)
    return sorted(scored(group, places), key=lambda place: -reward_at(group, place))[:size]


def _best_source(group: PromptGroup, sides: Sides) -> list[list[int]]:
    best = sides.best(group, range(len(group.responses)))
    # Without one nothing can be chosen anywhere; then all places say together what is missing.
    return [list(range(len(group.responses)))] if best is None else [by_source(group)[group.responses[best].source]]


def _per_source(group: PromptGroup, sides: Sides) -> list[list[int]]:
    return list(by_source(group).values())


def _across_sources(group: PromptGroup, sides: Sides) -> list[list[int]]:
    return [list(range(len(group.responses)))]


AMONG: dict[str, Callable[[PromptGroup, Sides], list[list[int]]]] = {
    "best_source": _best_source,
    "per_source": _per_source,
    "across_sources": _across_sources,
}

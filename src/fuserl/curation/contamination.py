"""A rule for prompts that overlap evaluation sets: every overlap is told first, and what is too much then dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fuserl.curation.eval_sets import eval_sets
from fuserl.curation.overlap import Index, Match, Overlaps, Place
from fuserl.curation.rules import Found
from fuserl.curation.texts import excerpt, prompt_text
from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup


class Contaminated:
    """Prompts, and responses if asked for, that repeat evaluation texts.

    An overlap is a run of words that stands in both. A text goes if it shares a large enough part of the shorter one's
    runs with one evaluation text; a single common run in a long text is told and drops nothing. Runs in many prompts,
    or in many texts of one evaluation set, are a template's: they are told, and count for nothing.

    Args:
        sets: name -> path, text (column or columns), id (column or None), see `eval_sets.eval_sets`.
        folder: where relative paths begin; None: the working directory.
        against: names of the sets that are wanted; None: all.
        ngram: words of a run; of Chinese, characters.
        shortest: words; see `overlap.Index`.
        min_share: of the runs of the shorter text.
        max_frequency: share of prompts, or of a set's texts, above which a run is a template's.
        responses: look through the responses too.
        drop: False: overlaps are told, and all stay.

    Raises:
        FuserlError: a setting is out of its range, or an evaluation set is not there.
    """

    def __init__(
        self, name: str, sets: Mapping[str, Mapping[str, Any]], folder: str | None, against: Collection[str] | None, *,
        ngram: int, shortest: int, min_share: float, max_frequency: float, responses: bool, drop: bool,
    ) -> None:  # fmt: skip
        fits = {
            "ngram": ngram >= 1,
            "shortest": shortest >= 1,
            "min_share": 0 < min_share <= 1,
            "max_frequency": 0 < max_frequency <= 1,
        }
        if wrong := [setting for setting, right in fits.items() if not right]:
            raise FuserlError(
                f"`{wrong[0]}` is out of its range",
                where=f"the rule `{name}`",
                hint="`ngram` and `shortest` are at least 1, `min_share` and `max_frequency` above 0 and at most 1",
            )
        self.name, self.drop = name, drop
        self._sets = eval_sets(folder, sets, against)
        self._ngram, self._shortest = ngram, shortest
        self._min_share, self._max_frequency, self._responses = min_share, max_frequency, responses
        self._gone: dict[Place, str] = {}
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def fit(self, groups: Iterable[PromptGroup]) -> None:
        """Read the evaluation sets, and all prompts once."""
        index = Index(self._sets, self._ngram, self._shortest)
        overlaps = Overlaps(index)
        overlaps.add(self._texts(groups))
        in_sets, in_data = index.common(self._max_frequency), overlaps.common(self._max_frequency)
        found = sorted(overlaps.matches(in_sets | in_data), key=_order)
        worst: dict[Place, Match] = {}
        for match in found:
            if match.share >= self._min_share and (match.place not in worst or match.share > worst[match.place].share):
                worst[match.place] = match
        self._gone = {place: _why(match) for place, match in worst.items()}
        self._tables = {
            "evaluation sets": _counts(index, found, self._min_share),
            "matches": [_row(match, self._min_share) for match in found],
            "runs of templates, not counted": _templates(index, in_sets, in_data),
        }

    def _texts(self, groups: Iterable[PromptGroup]) -> Iterator[tuple[str, Place]]:
        for group in groups:
            yield prompt_text(group), Place(group.id, None, None)
            if self._responses:
                for response in group.responses:
                    yield response.text, Place(group.id, response.source, response.sample)

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """Counts of each evaluation set, every match with its shares, and what was taken for a template."""
        return self._tables

    def __call__(self, group: PromptGroup) -> Found:
        """What shares too much with an evaluation text goes."""
        if not self.drop:
            return Found()
        places = [Place(group.id, response.source, response.sample) for response in group.responses]
        gone = {number: self._gone[place] for number, place in enumerate(places) if place in self._gone}
        return Found(self._gone.get(Place(group.id, None, None)), gone)


def _order(match: Match) -> tuple[Any, ...]:
    """By evaluation set, evaluation text, prompt, the prompt itself before its responses."""
    place = match.place
    return *match.item[:2], place.prompt_id, place.source or "", -1 if place.sample is None else place.sample


def _why(match: Match) -> str:
    where = excerpt(f"{match.item.set} {match.item.id}")
    return f"{match.share:.0%} shared with {where}: {excerpt(match.run)}"


def _row(match: Match, min_share: float) -> dict[str, Any]:
    return {
        "evaluation set": match.item.set,
        "id": excerpt(match.item.id),
        "prompt": excerpt(match.place.prompt_id),
        "source": match.place.source,
        "sample": match.place.sample,
        "runs shared": match.shared,
        "of the evaluation text": round(match.of_item, 3),
        "of the text here": round(match.of_text, 3),
        "too much": match.share >= min_share,
        "first run shared": excerpt(match.run, 200),
    }


def _counts(index: Index, found: list[Match], min_share: float) -> list[dict[str, Any]]:
    """A row a set: its texts, those that stand here, prompts or responses that share something, or too much."""
    rows = []
    for name, texts in sorted(index.per_set.items()):
        of_set = [match for match in found if match.item.set == name]
        too_much = [match for match in of_set if match.share >= min_share]
        rows.append(
            {
                "evaluation set": name,
                "texts": texts,
                "texts found here": len({match.item for match in too_much}),
                "share a run": len({match.place for match in of_set}),
                "share too much": len({match.place for match in too_much}),
            }
        )
    return rows


def _templates(index: Index, in_sets: Any, in_data: Any) -> list[dict[str, Any]]:
    """A row a run that counted for nothing."""
    rows = []
    for run in np.flatnonzero(in_sets | in_data).tolist():
        items = [index.items[item] for item in index.item_of_pair[index.starts[run] : index.starts[run + 1]].tolist()]
        of_sets = Counter(item.set for item in items)
        rows.append(
            {
                "run": excerpt(index.shown([run], items[0]), 200),
                "in evaluation sets": ", ".join(f"{name} {count}" for name, count in sorted(of_sets.items())),
                "common in a set": bool(in_sets[run]),
                "common in the data": bool(in_data[run]),
            }
        )
    return rows

"""Which questions of benchmarks stand in the data that a model was trained on: the rule of `fuserl select`, turned around."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from fuserl.curation.overlap import Index, Match, Overlaps, Place
from fuserl.curation.texts import excerpt, prompt_text
from fuserl.records.schema import PromptGroup
from fuserl.settings import config_folder

SETTINGS = ("ngram", "shortest", "min_share", "max_frequency", "responses")  # of conf/rule/contaminated.yaml


@dataclass(frozen=True)
class Asked:
    """A benchmark's questions without the words that all of them have around them."""

    name: str
    questions: Sequence[tuple[str, str]]  # id, text; an id comes again for each turn

    def texts(self) -> Iterator[tuple[str, str]]:
        """See `overlap.Texts`."""
        bare = without_frame([text for _, text in self.questions])
        return zip((name for name, _ in self.questions), bare, strict=True)


@dataclass(frozen=True)
class Overlap:
    """What of a benchmark stands in the data."""

    questions: int
    touched: int  # questions that share a run of words with a text of the data
    ids: tuple[str, ...]  # of those that share too much: what the rule of `fuserl select` would have dropped
    examples: tuple[Mapping[str, Any], ...]  # those that share most, with where they stand

    @property
    def share(self) -> float:
        """Of the questions, those that share too much."""
        return len(self.ids) / self.questions if self.questions else 0.0


def rule_settings() -> dict[str, Any]:
    """The settings of `rule=contaminated`, as conf/ has them: the same overlap there and here."""
    said = OmegaConf.load(config_folder() / "rule" / "contaminated.yaml")
    return {name: said[name] for name in SETTINGS}


def overlaps(
    benchmarks: Mapping[str, Iterable[tuple[str, str]]],
    groups: Iterable[PromptGroup],
    *,
    ngram: int,
    shortest: int,
    min_share: float,
    max_frequency: float,
    responses: bool,
    examples: int = 5,
) -> dict[str, Overlap]:
    """Every benchmark against the data, which is read once.

    Args:
        benchmarks: name -> (id, text) of every question, as `Benchmark.texts` gives them.
        groups: what was trained on.
        ngram, shortest, min_share, max_frequency, responses: see conf/rule/contaminated.yaml and `rule_settings`.
        examples: how many are kept of each benchmark.
    """
    asked = [Asked(name, list(questions)) for name, questions in benchmarks.items()]
    index = Index(asked, ngram, shortest)
    seen = Overlaps(index)
    seen.add(_texts(groups, responses))
    found = list(seen.matches(index.common(max_frequency) | seen.common(max_frequency)))
    by_name: dict[str, list[Match]] = {one.name: [] for one in asked}
    for match in found:
        by_name[match.item.set].append(match)
    return {one.name: _overlap(one, by_name[one.name], min_share, examples) for one in asked}


def without_frame(texts: Sequence[str]) -> list[str]:
    """Texts without the words at their beginnings and ends that all of them have, a benchmark's instructions.

    >>> without_frame(["Solve: 1 + 1 Be brief.", "Solve: 2 + 3 Be brief."])
    ['1 + 1', '2 + 3']
    >>> without_frame(["one alone"]), without_frame(["a a", "a a"])
    (['one alone'], ['a a', 'a a'])
    """
    words = [text.split() for text in texts]
    if len(set(map(tuple, words))) < 2:
        return list(texts)
    left = [one[_shared(words) :] for one in words]
    behind = _shared([one[::-1] for one in left])
    return [" ".join(one[: len(one) - behind]) for one in left]


def _shared(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with; at least one is left of each."""
    most = max(min(map(len, words)) - 1, 0)
    differing = (place for place, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1)
    return min(next(differing, most), most)


def _texts(groups: Iterable[PromptGroup], responses: bool) -> Iterator[tuple[str, Place]]:
    for group in groups:
        yield prompt_text(group), Place(group.id, None, None)
        if responses:
            for response in group.responses:
                yield response.text, Place(group.id, response.source, response.sample)


def _overlap(asked: Asked, found: Sequence[Match], min_share: float, examples: int) -> Overlap:
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in asked.questions))}
    too_much = [match for match in found if match.share >= min_share]
    best: dict[str, Match] = {}
    for match in sorted(
        too_much, key=lambda match: (-match.share, -match.shared, order[match.item.id], match.place.prompt_id)
    ):
        best.setdefault(match.item.id, match)
    ids = tuple(sorted(best, key=order.__getitem__))
    shown = tuple(_row(match) for match in list(best.values())[:examples])
    return Overlap(len(order), len({match.item.id for match in found}), ids, shown)


def _row(match: Match) -> dict[str, Any]:
    return {
        "question": match.item.id,
        "text": excerpt(match.item.text),
        "prompt": match.place.prompt_id,
        "source": match.place.source,
        "sample": match.place.sample,
        "share": round(match.share, 3),
        "run": excerpt(match.run, 200),
    }

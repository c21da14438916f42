"""Grading form: does an answer keep the constraints that its prompt states (IFEval's verifiable instructions)?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from fuserl.records.schema import PromptGroup
from fuserl.rewards.constraints import RULES, follows, readings
from fuserl.rewards.protocol import Item, Score

PROTOCOL = 1  # of the rules: to be raised when one of them would find otherwise
IDS, WANTED = "instruction_id_list", "kwargs"  # IFEval's fields of a group


class FormatScorer:
    """`right` if all of the group's constraints are kept; the reward is the share that is.

    A group names its constraints as IFEval does: `instruction_id_list`, and `kwargs` with one mapping each. `unknown`: a
    group without constraints, or with one that we do not know or whose mapping does not fit.

    Args:
        loose: an answer also keeps a constraint if it does so without its first or last line, or without asterisks.
    """

    def __init__(self, *, loose: bool, name: str = "format") -> None:
        self.name, self.loose = name, loose

    def identity(self) -> Mapping[str, Any]:
        """The reading, the rules, the model that knows languages."""
        return {"loose": self.loose, "protocol": PROTOCOL, "versions": {"py3langid": version("py3langid")}}

    def context(self, item: Item) -> Any:
        """The constraints."""
        return [item.group.extra.get(IDS), item.group.extra.get(WANTED)]

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        """One after the other: a rule takes microseconds."""
        return (self._one(item) for item in items)

    def close(self) -> None:
        """There is nothing to give back."""

    def _one(self, item: Item) -> Score:
        constraints = constraints_of(item.group)
        if not constraints:
            return Score(item.key, None, "unknown", {"why": f"the group has no `{IDS}`"})
        text = item.response.text
        texts, kept = readings(text) if self.loose else [text], []
        for name, wanted in constraints:
            try:
                kept.append(follows(RULES[name], wanted, texts))
            except (KeyError, TypeError, AttributeError, ValueError):
                why = f"`{name}` does not take these kwargs" if name in RULES else f"`{name}` is not known"
                return Score(item.key, None, "unknown", {"why": why})
        broken = [name for (name, _), ok in zip(constraints, kept, strict=True) if not ok]
        detail = {"broken": broken} if broken else {}
        return Score(item.key, sum(kept) / len(kept), "wrong" if broken else "right", detail)


def constraints_of(group: PromptGroup) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings of each constraint; settings that a table has filled with nulls are absent."""
    names, wanted = group.extra.get(IDS), group.extra.get(WANTED)
    if not isinstance(names, list) or not isinstance(wanted, list) or len(names) != len(wanted):
        return []
    settings = [value if isinstance(value, Mapping) else {} for value in wanted]
    return [
        (str(name), {key: value for key, value in one.items() if value is not None})
        for name, one in zip(names, settings, strict=True)
    ]

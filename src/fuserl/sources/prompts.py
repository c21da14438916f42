"""Which prompts are asked, as `data` of `conf/generate.yaml` says: streamed each time, never held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import PromptGroup
from fuserl.records.splits import in_part

COLUMNS = ("prompt", "prompt_id", "domain", "reference")  # ours, that may have other names in the rows
UNSTATED = "general"  # the domain of rows that state none


@dataclass(frozen=True)
class Prompts:
    """Prompts of any data set, with or without the answers that stand beside them."""

    path: str
    split: str | None
    form: str
    columns: Mapping[str, str]
    domain: str | None
    domains: tuple[str, ...] | None
    part: tuple[float, float]
    limit: int | None
    on_bad_row: str
    keep_responses: bool

    def groups(self, report: ReadReport | None = None) -> Iterator[PromptGroup]:
        """Prompts in their order, as groups without responses, or with those that are kept.

        Raises:
            FuserlError: the data set is not there, or a row is bad.
        """
        return islice(self._chosen(report), self.limit)

    def _chosen(self, report: ReadReport | None) -> Iterator[PromptGroup]:
        rows = read_groups(
            self.path,
            split=self.split,
            form=self.form,
            on_bad_row=self.on_bad_row,
            report=report,
            needs=Needs(responses=self.keep_responses, at_least=0, text=False),
            columns=self.columns,
        )
        for group in rows:
            if self.domain is not None and group.domain == UNSTATED:
                group = replace(group, domain=self.domain)
            if (self.domains is None or group.domain in self.domains) and in_part(group.id, *self.part):
                yield group


def prompts_of(data: Mapping[str, Any]) -> Prompts:
    """The prompts that settings name; nothing is read yet.

    Raises:
        FuserlError: a setting is of the wrong kind, or out of its range.
    """
    columns, domains, part, limit = data["columns"] or {}, data["domains"], data["part"], data["limit"]
    _require(isinstance(columns, Mapping), "columns", columns, "a mapping, such as {prompt: question}")
    for ours, theirs in columns.items():
        _require(ours in COLUMNS and isinstance(theirs, str), "columns", columns, f"of {', '.join(COLUMNS)} to names")
    _require(domains is None or _texts(domains), "domains", domains, "a list of names")
    _require(data["domain"] is None or _texts([data["domain"]]), "domain", data["domain"], "a name")
    ends = [end for end in part if isinstance(end, int | float)] if _list(part) else []
    _require(len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1, "part", part, "two numbers from 0 to 1, the first smaller")
    keep = data["keep_responses"]
    _require(isinstance(keep, bool), "keep_responses", keep, "true or false")
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    _require(limit is None or whole, "limit", limit, "1 or more, or null")
    return Prompts(
        path=str(data["path"]),
        split=data["split"],
        form=data["format"],
        columns=columns,
        domain=data["domain"],
        domains=None if domains is None else tuple(domains),
        part=(float(ends[0]), float(ends[1])),
        limit=limit,
        on_bad_row=data["on_bad_row"],
        keep_responses=data["keep_responses"],
    )


def _require(fits: bool, key: str, value: Any, rule: str) -> None:
    if not fits:
        raise FuserlError(f"`data.{key}` is {value!r}", where=f"`data.{key}`", hint=f"it must be {rule}")


def _list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _texts(value: Any) -> bool:
    return _list(value) and all(isinstance(one, str) and one for one in value)

"""The texts of evaluation sets, wherever their files keep them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.formats import file_rows
from fuserl.records.rows import BadField


@dataclass(frozen=True)
class EvalSet:
    """A file with evaluation prompts: JSON lines, a JSON list or parquet, plain or gzipped."""

    name: str
    path: Path
    text: tuple[str, ...]  # columns: texts, lists of texts (turns), or lists of messages
    id: str | None  # column; None: rows are numbered from 0

    def texts(self) -> Iterator[tuple[str, str]]:
        """(id, text); an id comes again for each text of its row.

        Raises:
            FuserlError: the file or a row of it cannot be read, or has not the columns.
        """
        count = 0
        for where, row in file_rows(self.path):
            if isinstance(row, BadField):
                raise FuserlError(str(row), where=where, hint="mend the row, or take it out")
            if not isinstance(row, Mapping):
                raise FuserlError(
                    f"a row must be an object, not {type(row).__name__}", where=where, hint="name another file"
                )
            wanted = [*self.text, *([] if self.id is None else [self.id])]
            if missing := [column for column in wanted if column not in row]:
                raise FuserlError(
                    f"the row has no column `{missing[0]}`",
                    where=where,
                    hint=f"it has {', '.join(map(str, row))}; set `text` and `id` of the evaluation set `{self.name}`",
                )
            name = str(count if self.id is None else row[self.id])
            for column in self.text:
                yield from ((name, text) for text in _texts_in(row[column], f"{where}, `{column}`"))
            count += 1
        if not count:
            raise FuserlError("the evaluation set is empty", where=str(self.path), hint="name another file")


def _texts_in(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item, where)
    elif value is not None:
        raise FuserlError(
            f"an evaluation text must be a text, a list of texts or of messages, not {type(value).__name__}",
            where=where,
            hint="name another column in `text`",
        )


def eval_sets(
    folder: str | None, sets: Mapping[str, Mapping[str, Any]], against: Collection[str] | None
) -> list[EvalSet]:
    """Evaluation sets from their configuration: each has `path`, `text` (a column or several) and `id`.

    Args:
        folder: where relative paths begin; None: the working directory.
        against: names of those that are wanted; None: all.

    Raises:
        FuserlError: a set has another setting or lacks one, there is no such set, or no such file.
    """
    if unknown := sorted({*(against or ())} - {*sets}):
        raise FuserlError(
            f"there is no evaluation set `{unknown[0]}`",
            where="`against` of a rule against contamination",
            hint=f"`sets` has {', '.join(sets) or 'none'}",
        )
    return [_eval_set(name, settings, folder) for name, settings in sets.items() if against is None or name in against]


def _eval_set(name: str, settings: Mapping[str, Any], folder: str | None) -> EvalSet:
    where = f"the evaluation set `{name}`"
    if {*settings} != {"path", "text", "id"}:
        raise FuserlError(
            f"its settings are {', '.join(settings) or 'none'}",
            where=where,
            hint="give `path`, `text` (a column, or a list of columns) and `id` (a column, or null)",
        )
    path = (Path(folder or ".") / str(settings["path"])).expanduser()
    if not path.is_file():
        raise FuserlError(
            f"there is no file {path}",
            where=where,
            hint="name the folder of the evaluation files with the rule's `folder`, or the sets you have in `against`",
        )
    text = settings["text"]
    return EvalSet(name, path, (text,) if isinstance(text, str) else tuple(text), settings["id"])

"""A benchmark's rows, wherever they lie, read as prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fuserl.errors import FuserlError
from fuserl.records.formats import file_rows
from fuserl.records.hub import HUB, file_of
from fuserl.records.rows import BadField
from fuserl.records.schema import PromptGroup
from fuserl.settings import require_whole

HINT = "without a network, give a file of them with `benchmarks.NAME.questions.path=FILE`"

CARD = "`questions.path` must be the benchmark's own file; its card says what its rows hold"

Row = Mapping[str, Any]
Found = TypeVar("Found")
Read = Callable[[Row], PromptGroup]  # raises KeyError, TypeError or ValueError where a row is not as it must be


@dataclass(frozen=True)
class Questions:
    """The questions of a benchmark, as configuration names them.

    Args:
        path: a file (JSON lines, JSON, parquet, plain or gzipped), `hf://datasets/OWNER/NAME/FILE`, or a hub data set.
        read: one row -> a prompt without responses.
        subset, split: of a hub data set.
        revision: of the hub's repository; None: the newest.
        limit: the first so many rows; None: all.
    """

    path: str
    read: Read
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        require_whole(1, questions__limit=self.limit)

    @cached_property
    def groups(self) -> list[PromptGroup]:
        """All questions, in the file's order.

        Raises:
            FuserlError: they cannot be found, a row is not as it must be, or two have one id.
        """
        found: dict[str, PromptGroup] = {}
        for where, row in rows(self.path, self.subset, self.split, self.revision):
            if self.limit is not None and len(found) >= self.limit:
                break
            group = read_row(self.read, where, row, "no question of this benchmark", CARD)
            if group.id in found:
                raise FuserlError(f"the id `{group.id}` appears twice", where=where, hint="take one of the rows out")
            found[group.id] = group
        if not found:
            raise FuserlError("there are no questions", where=self.path, hint="give another file with `questions.path`")
        return list(found.values())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that is asked and graded by."""
        content = [
            [g.id, [[m.role, m.content] for m in g.prompt], g.domain, g.reference, dict(g.extra)] for g in self.groups
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def texts(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every user's turn."""
        return ((group.id, turn.content) for group in self.groups for turn in group.prompt if turn.role == "user")


def read_row(read: Callable[[Row], Found], where: str, row: Row, what: str, hint: str) -> Found:
    """What a reader makes of a row.

    Args:
        what: the row should be.

    Raises:
        FuserlError: it is something else, and the reader stumbled.
    """
    try:
        return read(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        missing = f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        raise FuserlError(f"the row is {what} ({missing})", where=where, hint=hint) from error


def rows(path: str, subset: str | None, split: str | None, revision: str | None) -> Iterator[tuple[str, Row]]:
    """(where, row) of a file or a hub data set.

    Raises:
        FuserlError: it cannot be found or read.
    """
    file = Path(path).expanduser()
    if path.startswith(HUB):
        found = file_rows(file_of(path, revision, hint=HINT))
    elif file.is_file():
        found = file_rows(file)
    else:
        found = _of_hub(path, subset, split, revision)
    for where, row in found:
        if isinstance(row, BadField) or not isinstance(row, Mapping):
            what = str(row) if isinstance(row, BadField) else f"a row must be an object, not {type(row).__name__}"
            raise FuserlError(what, where=where, hint="mend the row, or take it out")
        yield where, row


def _of_hub(path: str, subset: str | None, split: str | None, revision: str | None) -> Iterator[tuple[str, Any]]:
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local:
        raise FuserlError("there is no such file", where=path, hint="give `questions.path` a file or a hub data set")
    from datasets import load_dataset  # slow to import

    try:
        data = load_dataset(path, subset, split=split or "test", revision=revision)
    except Exception as error:  # as above
        raise _not_there(path, error) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(data))


def _not_there(path: str, error: Exception) -> FuserlError:
    why = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return FuserlError(
        f"the questions cannot be loaded ({why})",
        where=path,
        hint=HINT,
    )

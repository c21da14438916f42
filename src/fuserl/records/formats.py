"""Reading groups, whatever they lie in. Nothing is dropped silently."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.foreign import FOREIGN, looks_like
from fuserl.records.rows import BadField, Needs, RowResult, group_of
from fuserl.records.schema import Message, PromptGroup
from fuserl.records.splits import prompt_digest
from fuserl.records.store import group_from, is_store_file, iter_groups, parquet_rows

SPLITS = ("train", "validation", "test")
ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet")
FORMS = ("auto", "fuserl", "jsonl", "datasets", *FOREIGN)


@dataclass
class ReadReport:
    """What reading has seen and left out."""

    rows: int = 0
    groups: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (where, what)

    def summary(self) -> str:
        """One line."""
        return f"{self.groups} groups of {self.rows} rows, {len(self.skipped)} rows or responses left out"


def splits_of(path: str | Path) -> tuple[str, ...]:
    """Names of the splits that a folder holds; none for a single unsplit set."""
    path = Path(path).expanduser()
    if not path.is_dir() or (path / "manifest.json").exists():
        return ()
    if (path / "dataset_dict.json").exists():
        try:
            return tuple(json.loads((path / "dataset_dict.json").read_text())["splits"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FuserlError(
                "the saved data set's list of splits cannot be read",
                where=str(path / "dataset_dict.json"),
                hint="save the data set again",
            ) from error
    return tuple(split for split in SPLITS if split_path(path, split))


def split_path(folder: Path, split: str) -> Path | None:
    """The folder or file of a split, None where there is none."""
    candidates = [folder / split, *(folder / f"{split}{ending}" for ending in ENDINGS)]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def read_groups(
    path: str | Path,
    *,
    split: str | None = None,
    form: str = "auto",
    on_bad_row: str = "error",
    report: ReadReport | None = None,
    needs: Needs = Needs(),  # noqa: B008 (immutable)
    columns: Mapping[str, str] | None = None,
) -> Iterator[PromptGroup]:
    """Groups of a folder, a file (plain or gzipped), or a `datasets` name, in their order.

    Args:
        split: of a folder or hub name that has several; sets without splits do not ask. On the hub null is `train`.
        form: `auto`, or one of FORMS.
        on_bad_row: `error`, or `skip`: leave out what is bad and list it in the report.
        report: filled while reading.
        needs: what is asked of the responses; verbs that make data take prompts without any, or empty texts.
        columns: our field -> the name it has in the rows, as {"prompt": "question"}.

    Raises:
        FuserlError: a row is bad, with file, row and field; or the path holds no data set, or one without rows.
    """
    if form not in FORMS:
        raise FuserlError(f"there is no data format `{form}`", where="`data.format`", hint=f"one of {', '.join(FORMS)}")
    if on_bad_row not in ("error", "skip"):
        raise FuserlError(
            f"`{on_bad_row}` is no way to treat bad rows", where="`data.on_bad_row`", hint="error or skip"
        )
    report = report if report is not None else ReadReport()
    seen, fallback_id, before = set(), _ids_by_prompt(), report.rows
    for where, row in _rows(path, split, form):
        report.rows += 1
        try:
            row = _renamed(row, columns or {})
            result = _checked(row, form, skip=on_bad_row == "skip", fallback_id=fallback_id, needs=needs)
            if result.group and result.group.id in seen:
                raise BadField("prompt_id", f"{result.group.id!r} appears twice")
        except BadField as error:
            if on_bad_row == "error":
                raise FuserlError(
                    str(error), where=where, hint="mend the row, or leave such rows out with `data.on_bad_row=skip`"
                ) from error
            result = RowResult(None, [str(error)])
        report.skipped += [(where, what) for what in result.left_out]
        if result.group:
            seen.add(result.group.id)
            report.groups += 1
            yield result.group
    if report.rows == before:
        raise FuserlError(
            "the data set is empty", where=str(path), hint="a data set needs at least one prompt with a response"
        )


def _ids_by_prompt() -> Callable[[tuple[Message, ...]], str]:
    """Names for prompts without id: by what they say, so that they do not change with the order of the rows."""
    times: Counter[str] = Counter()

    def name(prompt: tuple[Message, ...]) -> str:
        digest = prompt_digest(prompt)
        times[digest] += 1
        return f"prompt-{digest}" + (f"-{times[digest]}" if times[digest] > 1 else "")

    return name


def _renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """A row under our names.

    Raises:
        BadField: it has not a column that was named.
    """
    if not columns or not isinstance(row, Mapping):
        return row
    if missing := [name for name in columns.values() if name not in row]:
        raise BadField(missing[0], f"is no column of the row, which has {', '.join(map(str, row))}")
    taken = set(columns.values())
    return {key: value for key, value in row.items() if key not in taken} | {
        ours: row[theirs] for ours, theirs in columns.items()
    }


def _checked(
    row: Any, form: str, *, skip: bool, fallback_id: Callable[[tuple[Message, ...]], str], needs: Needs
) -> RowResult:
    """One row of `_rows` as a group, with what had to be left out of it."""
    if isinstance(row, PromptGroup):
        return _as_needed(row, skip=skip, needs=needs)
    if isinstance(row, BadField):
        raise row
    if not isinstance(row, Mapping):
        raise BadField("row", f"must be an object, not {type(row).__name__}")
    name = form if form in FOREIGN else looks_like(row)
    return group_of(FOREIGN[name](row) if name else row, skip=skip, fallback_id=fallback_id, needs=needs)


def _as_needed(group: PromptGroup, *, skip: bool, needs: Needs) -> RowResult:
    """A stored group: whole, but for empty answers, which `generate` and `score` keep as they came."""
    if not needs.responses:
        return RowResult(replace(group, responses=()))
    if not needs.text:
        return RowResult(group)
    empty = [f"`responses[{n}].text` is empty" for n, r in enumerate(group.responses) if not r.text.strip()]
    kept = tuple(response for response in group.responses if response.text.strip())
    if not kept:
        raise BadField("responses", "holds empty answers alone; `fuserl select` drops such prompts")
    if empty and not skip:
        raise BadField("responses", f"holds empty answers ({empty[0]}); `fuserl select` drops them")
    return RowResult(replace(group, responses=kept), empty)


def _rows(path: str | Path, split: str | None, form: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row: a mapping, a finished group, or the BadField that stands in its place."""
    folder = Path(path).expanduser()
    if not folder.exists():
        yield from _datasets_rows(str(path), split, is_path=False)
    elif folder.is_file():
        yield from file_rows(folder)
    elif (folder / "manifest.json").exists():
        yield from ((f"{folder}, group {number}", group) for number, group in enumerate(iter_groups(folder)))
    elif (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        yield from _datasets_rows(str(folder), split, is_path=True)
    else:
        inside, splits = split_path(folder, split) if split else None, splits_of(folder)
        if inside is None:
            raise FuserlError(
                f"the folder holds no split `{split}`" if splits else "the folder holds no data set",
                where=str(folder),
                hint=f"it has {', '.join(splits)}"
                if splits
                else "expected manifest.json with groups-*.parquet, train.jsonl[.gz], or a saved `datasets` folder",
            )
        yield from _rows(inside, None, form)


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row of a file, whatever its rows are; a row that cannot be parsed is a BadField.

    Raises:
        FuserlError: the file cannot be read, or has an ending that is not one of ENDINGS.
    """
    if path.suffix == ".parquet":
        ours = is_store_file(path)
        for number, row in enumerate(parquet_rows(path)):
            yield f"{path}, row {number}", group_from(row, path) if ours else row
        return
    if not path.name.endswith(ENDINGS):
        raise FuserlError("the file's ending is not known", where=str(path), hint=f"one of {', '.join(ENDINGS)}")
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            if path.name.endswith((".json", ".json.gz")):
                yield from _json_rows(path, file.read())
                return
            for number, line in enumerate(file):
                if line.strip():
                    yield f"{path}, row {number}", _parsed(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FuserlError(
            f"the gzip file is cut short or broken after row {number}", where=str(path), hint="copy or write it again"
        ) from error
    except OSError as error:
        raise FuserlError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error


def _json_rows(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    if not content.strip():
        return
    rows = _parsed(content)
    if isinstance(rows, list):
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))
    elif isinstance(rows, BadField) and b"\n" in content.strip():
        lines = enumerate(content.split(b"\n"))
        yield from ((f"{path}, row {number}", _parsed(line)) for number, line in lines if line.strip())
    else:
        yield f"{path}, row 0", rows


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadField("row", f"is not valid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadField("row", f"is not valid JSON ({str(error)[:80]})")


def _datasets_rows(path: str, split: str | None, *, is_path: bool) -> Iterator[tuple[str, Any]]:
    from datasets import DatasetDict, load_dataset, load_from_disk  # slow to import, rarely needed

    split = split or "train"
    try:
        data = load_from_disk(path) if is_path else load_dataset(path, split=split)
        if isinstance(data, DatasetDict):
            if split not in data:
                raise FuserlError(
                    f"the data set has no split `{split}`", where=path, hint=f"it has {', '.join(map(str, data))}"
                )
            data = data[split]
        for number, row in enumerate(data):
            yield f"{path}, row {number}", row
    except FuserlError:
        raise
    except Exception as error:  # of datasets, pyarrow, fsspec and the network: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        looks_local = "/" not in path or path.startswith(("/", ".", "~")) or path.endswith(ENDINGS)
        if is_path:
            what, hint = f"the saved data set is cut short or broken ({why})", "copy or save it again"
        else:
            what = "no such file or folder" if looks_local else f"the data set cannot be loaded ({why})"
            hint = "give `data.path` a folder, a file, or the name of a data set on the hub (which needs a network)"
        raise FuserlError(what, where=path, hint=hint) from error

"""Groups on disk: zstd parquet, one row a group, streamed, in a stable order."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuserl.errors import FuserlError
from fuserl.records.manifest import Counting, Manifest, read_manifest, write_manifest
from fuserl.records.schema import Message, PromptGroup, Response

CHUNK_GROUPS, CHUNK_RESPONSES = 1000, 8000  # in memory together, while writing and reading

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])  # extra: JSON
_RESPONSE = pa.struct(
    [
        ("source", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("weight", pa.float64()),
        ("finish_reason", pa.string()),
        ("sampling", pa.string()),  # JSON
        ("extra", pa.string()),  # JSON
    ]
)
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.list_(_MESSAGE)),
        ("domain", pa.string()),
        ("reference", pa.string()),
        ("responses", pa.list_(_RESPONSE)),
        ("extra", pa.string()),  # JSON
    ]
)


def write_groups(
    groups: Iterable[PromptGroup],
    folder: str | Path,
    *,
    manifest_extra: dict[str, Any] | None = None,
    rows_per_file: int = 20_000,
) -> Manifest:
    """Write a data set; the folder is whole or absent.

    Raises:
        FuserlError: the folder exists already, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FuserlError("the folder exists already", where=str(folder), hint="give another one, or delete it")
    part = folder.with_name(folder.name + ".part")
    with _working_in(part, folder, hint="give a folder that can be written, and valid Unicode"):
        manifest = _write_parts(groups, part, manifest_extra or {}, rows_per_file)
        part.rename(folder)
    return manifest


def replace_groups(
    groups: Iterable[PromptGroup], folder: str | Path, *, manifest_extra: dict[str, Any] | None = None
) -> Manifest:
    """Write a data set into a folder that holds other things too, an older state of it perhaps.

    Readers see the old data set until the new manifest replaces the old one, and the new one from then on.

    Raises:
        FuserlError: the folder cannot be written.
    """
    folder = Path(folder)
    part = folder / ".groups.part"
    with _working_in(part, folder, hint="make room, or give another folder with `output=DIR`"):
        manifest = _write_parts(groups, part, manifest_extra or {}, rows_per_file=20_000)
        names = {
            name: f"groups-{manifest.digest[:8]}-{number:05d}.parquet" for number, name in enumerate(manifest.files)
        }
        for name, new in names.items():
            (part / name).replace(folder / new)
        manifest.files = {names[name]: rows for name, rows in manifest.files.items()}
        manifest.file_digests = {names[name]: digest for name, digest in manifest.file_digests.items()}
        write_manifest(folder, manifest)
        for path in folder.glob("groups-*.parquet"):
            if path.name not in manifest.files:
                path.unlink(missing_ok=True)
    return manifest


@contextmanager
def _working_in(part: Path, folder: Path, *, hint: str) -> Iterator[None]:
    """An empty folder to write into, gone afterwards; what keeps a data set from `folder` is told."""
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise FuserlError(f"the data set cannot be written ({error})", where=str(folder), hint=hint) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_parts(groups: Iterable[PromptGroup], part: Path, extra: dict[str, Any], rows_per_file: int) -> Manifest:
    counting, files, digests = Counting(), {}, {}
    stream = _counted(groups, counting)
    while (first := next(stream, None)) is not None:
        name = f"groups-{len(files):05d}.parquet"
        rows = 0
        with pq.ParquetWriter(part / name, SCHEMA, compression="zstd") as file:
            for chunk in _chunks(chain([first], islice(stream, rows_per_file - 1))):
                file.write_table(pa.Table.from_pylist([_to_row(group) for group in chunk], schema=SCHEMA))
                rows += len(chunk)
        files[name], digests[name] = rows, file_digest(part / name)
    manifest = counting.manifest(files, extra)
    manifest.file_digests = digests
    write_manifest(part, manifest)
    return manifest


def _counted(groups: Iterable[PromptGroup], counting: Counting) -> Iterator[PromptGroup]:
    for group in groups:
        counting.add(group)
        yield group


def _chunks(groups: Iterable[PromptGroup]) -> Iterator[list[PromptGroup]]:
    """What is in memory at a time, and a row group of the file: so many groups, or so many responses."""
    chunk: list[PromptGroup] = []
    responses = 0
    for group in groups:
        chunk.append(group)
        responses += len(group.responses)
        if len(chunk) == CHUNK_GROUPS or responses >= CHUNK_RESPONSES:
            yield chunk
            chunk, responses = [], 0
    if chunk:
        yield chunk


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def iter_groups(folder: str | Path) -> Iterator[PromptGroup]:
    """Read a data set in its order, a part of a file in memory at a time.

    Raises:
        FuserlError: a file that the manifest names is missing, cut short, or has other rows.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, rows in manifest.files.items():
        path = folder / name
        if (wanted := manifest.file_digests.get(name)) and file_digest(path) != wanted:
            raise FuserlError(
                "the parquet file is missing or half-written, or was changed after it was written",
                where=str(path),
                hint="copy or write it again",
            )
        seen = 0
        for row in parquet_rows(path):
            seen += 1
            yield group_from(row, path)
        if seen != rows:
            raise FuserlError(
                f"the file holds {seen} rows, its manifest says {rows}",
                where=str(path),
                hint="write the data set again",
            )


def group_from(row: dict[str, Any], path: Path) -> PromptGroup:
    """A stored row as a group.

    Raises:
        FuserlError: it has not the fields that `write_groups` writes.
    """
    try:
        return _from_row(row)
    except (KeyError, TypeError, ValueError) as error:
        raise FuserlError(
            f"a stored row cannot be read ({error!r})", where=str(path), hint="write the data set again"
        ) from error


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one parquet file.

    Raises:
        FuserlError: it is missing or half-written.
    """
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=CHUNK_GROUPS, row_groups=[number]):
                    yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FuserlError(
            f"the parquet file is missing or half-written ({str(error).splitlines()[0]})",
            where=str(path),
            hint="copy or write it again; a parquet file that was cut short cannot be read in part",
        ) from error


def _to_row(group: PromptGroup) -> dict[str, Any]:
    return {
        "prompt_id": group.id,
        "prompt": [{"role": m.role, "content": m.content, "extra": _json_of(m.extra)} for m in group.prompt],
        "domain": group.domain,
        "reference": group.reference,
        "responses": [
            {
                "source": r.source,
                "sample": r.sample,
                "text": r.text,
                "reward": r.reward,
                "verdict": r.verdict,
                "weight": r.weight,
                "finish_reason": r.finish_reason,
                "sampling": None if r.sampling is None else json.dumps(dict(r.sampling), default=str),
                "extra": _json_of(r.extra),
            }
            for r in group.responses
        ],
        "extra": _json_of(group.extra),
    }


def _json_of(extra: Mapping[str, Any]) -> str | None:
    return json.dumps(dict(extra), default=str) if extra else None


def is_store_file(path: Path) -> bool:
    """Whether a parquet file is a part of a data set that `write_groups` wrote."""
    try:
        return pq.read_schema(path).names == SCHEMA.names
    except (OSError, pa.ArrowException):
        return False


def _from_row(row: dict[str, Any]) -> PromptGroup:
    """Fields that we do not know come back from JSON; a message without them was written before they were kept."""

    responses = tuple(
        Response(**r | {"sampling": _loads(r["sampling"], None), "extra": _loads(r["extra"], {})})
        for r in row["responses"]
    )
    prompt = tuple(Message(m["role"], m["content"], _loads(m.get("extra"), {})) for m in row["prompt"])
    return PromptGroup(row["prompt_id"], prompt, responses, row["domain"], row["reference"], _loads(row["extra"], {}))


def _loads(text: str | None, empty: Any) -> Any:
    return json.loads(text) if text else empty

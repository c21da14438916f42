"""What a data set consists of on disk, without parsing it: which files, their digest, how many rows."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuserl.errors import FuserlError
from fuserl.records.formats import split_path
from fuserl.records.manifest import read_manifest
from fuserl.records.store import file_digest

CHUNK = 1 << 20  # bytes


def files_of(path: str | Path, split: str | None) -> list[Path]:
    """The files that `read_groups` would read, in its order; none where it would fail or ask the hub."""
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if (path / "manifest.json").exists():
        return [path / name for name in read_manifest(path).files]
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return sorted(file for file in path.rglob("*") if file.is_file())
    inside = split_path(path, split) if split else None
    return files_of(inside, None) if inside else []


def content_digest(path: str | Path, split: str | None) -> str:
    """SHA-256 over the contents of a data set's files: another place or date of the same files changes nothing.

    Raises:
        FuserlError: the manifest of a folder cannot be read.
    """
    content = hashlib.sha256(str(split).encode())
    if not Path(path).expanduser().exists():
        for part in _hub_parts(str(path), split):
            content.update(part)
    for file in files_of(path, split):
        content.update(f"{''.join(file.suffixes[-2:])} {file_digest(file)}\n".encode())
    return content.hexdigest()


def _hub_parts(name: str, split: str | None) -> Iterator[bytes]:
    """Digests of the files that a data set of the hub was downloaded into, or its rows where it is in memory."""
    from datasets import load_dataset  # slow to import, rarely needed

    try:
        data: Any = load_dataset(name, split=split or "train")
    except Exception:  # reading it says what is wrong
        return
    yield from (file_digest(Path(file["filename"])).encode() for file in data.cache_files)
    if not data.cache_files:
        yield from (repr(row).encode() for row in data)


def num_rows(path: str | Path, split: str | None) -> int | None:
    """Rows of the data set, counted without parsing them; None where that is not possible."""
    try:
        if (Path(path).expanduser() / "manifest.json").exists():
            return sum(read_manifest(Path(path).expanduser()).files.values())
        counts = [_rows_of(file) for file in files_of(path, split)]
    except (OSError, EOFError, pa.ArrowException, FuserlError):
        return None
    return sum(count for count in counts if count is not None) if counts and None not in counts else None


def _rows_of(file: Path) -> int | None:
    if file.suffix == ".parquet":
        return pq.read_metadata(file).num_rows
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        return None
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: opened.read(CHUNK), b""))

"""`manifest.json` of a data set, content digests, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from fuserl.errors import FuserlError
from fuserl.records.schema import PromptGroup

READ = 1 << 22  # bytes at a time

SCHEMA_VERSION = 1
_TYPES = {"groups": int, "responses": int, "digest": str}
_MAPS = {"sources": int, "domains": int, "files": int, "file_digests": str, "extra": object}  # what names map to


@dataclass
class Manifest:
    """What a data set's folder says about itself."""

    groups: int
    responses: int
    sources: dict[str, int]  # name -> responses
    domains: dict[str, int]  # name -> prompts
    digest: str
    files: dict[str, int]  # parquet file -> rows; a file that is missing or short was half-written
    schema_version: int = SCHEMA_VERSION
    file_digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file
    extra: dict[str, Any] = field(default_factory=dict)  # sampling, scorers, template hashes


class Counting:
    """Counts and hashes groups as they pass."""

    def __init__(self) -> None:
        self.groups, self.responses = 0, 0
        self.sources: Counter[str] = Counter()
        self.domains: Counter[str] = Counter()
        self.hash = hashlib.sha256()

    def add(self, group: PromptGroup) -> None:
        """Count one group."""
        self.groups += 1
        self.responses += len(group.responses)
        self.sources.update(response.source for response in group.responses)
        self.domains[group.domain] += 1
        self.hash.update(canonical(group))

    def manifest(self, files: dict[str, int], extra: dict[str, Any]) -> Manifest:
        """The totals."""
        counts = dict(sorted(self.sources.items())), dict(sorted(self.domains.items()))
        return Manifest(self.groups, self.responses, *counts, self.hash.hexdigest(), files, extra=extra)


def canonical(group: PromptGroup) -> bytes:
    """The JSON of a group that digests are made of: that of `dataclasses.asdict`, without copying it all."""
    return json.dumps(group, sort_keys=True, default=_fields).encode()


def _fields(value: Any) -> Any:
    return {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else str(value)


def digest_of(groups: Iterable[PromptGroup]) -> str:
    """SHA-256 of the groups' content, in order."""
    counting = Counting()
    for group in groups:
        counting.add(group)
    return counting.hash.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, last: its presence says that the data set is whole."""
    write_text_atomically(folder / "manifest.json", json.dumps(asdict(manifest), indent=1, ensure_ascii=False))


def read_manifest(folder: Path) -> Manifest:
    """Read it.

    Raises:
        FuserlError: it is missing, broken, of a newer schema, has a field of another type, or names a file elsewhere.
    """
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content.get("schema_version", SCHEMA_VERSION))
        if version > SCHEMA_VERSION:
            raise FuserlError(
                f"the data set has schema version {version}, this fuserl reads up to {SCHEMA_VERSION}",
                where=str(path),
                hint="update fuserl",
            )
        for name, kind in _TYPES.items():
            if not isinstance(content.get(name), kind):
                raise TypeError(f"`{name}` must be {kind.__name__}")
        for name, kind in _MAPS.items():
            value = content.get(name, {})
            if not isinstance(value, dict) or not all(isinstance(item, kind) for item in value.values()):
                raise TypeError(f"`{name}` must map names to {kind.__name__}")
        if outside := [
            name for name in content.get("files", {}) if name in ("", ".", "..") or "/" in name or "\0" in name
        ]:
            raise ValueError(f"{outside[0]!r} is no name of a file in the folder")
        return Manifest(**content)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FuserlError(
            f"the data set's manifest cannot be read ({error})", where=str(path), hint="write the data set again"
        ) from error


def crc32(path: Path) -> int:
    """Of a file's bytes, about 3 GB/s."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(READ):
            total = zlib.crc32(block, total)
    return total


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file, see `written_atomically`."""
    with written_atomically(path) as file:
        file.write(text)


@contextmanager
def written_atomically(path: Path) -> Iterator[TextIO]:
    """Write beside the target, flush to the disk, rename: a kill or an error leaves the old file or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

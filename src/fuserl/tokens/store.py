"""Tokenised groups in memory-mapped arrays, in a folder named by content. Written whole or not at all; no pickle."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fuserl.errors import FuserlError
from fuserl.records.manifest import crc32
from fuserl.records.schema import PromptGroup
from fuserl.tokens.columns import Codes, GrowingArray, Strings

VERDICT = {None: -1, "wrong": 0, "right": 1, "unknown": 2}
WHOLE = 1 << 30  # bytes of an array up to which all of it is looked at when a store is opened: 0.3 s at most
BLOCKS, BLOCK = 64, 4096  # that are looked at of a larger one
COLUMNS = {  # [N, K] columns: type while they grow, on disk, and what stands where there is no response
    "rewards": ("d", np.float64, np.nan),
    "given": ("d", np.float64, np.nan),
    "verdict": ("b", np.int8, -1),
    "num_tokens": ("i", np.int32, 0),  # trained tokens, end-of-turn counted
    "branch_tokens": ("i", np.int32, 0),  # with the untrained ones
    "untrained": ("i", np.int32, 0),
    "duplicate_of": ("i", np.int32, -1),  # column of the group's first identical response
    "start": ("q", np.int64, 0),  # where the branch begins in `tokens`
}


def response_key(prompt: np.ndarray, branch: np.ndarray, untrained: int) -> bytes:
    """Address of a response, 16 bytes: its prompt's and its own token ids, and where its trained part begins."""
    content = np.asarray(prompt, np.int32).tobytes() + b"|" + np.asarray(branch, np.int32).tobytes()
    return hashlib.sha256(content + b"|%d,%d" % (len(prompt), untrained)).digest()[:16]


class TokenStore:
    """Read side. `tokens` is flat; `prompt_start` and the columns say what lies where."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.folder, self.digest = folder, folder.name
        self.sources: list[str] = meta["sources"]
        self.domain_names: list[str] = meta["domains"]
        self.notes: Any = meta["notes"]
        self.ids = Strings(self._load("ids"), self._load("id_ends"))
        self.domain = self._load("domain")  # [N], positions in `domain_names`
        self.tokens = self._load("tokens")
        self.prompt_start, self.prompt_tokens = self._load("prompt_start"), self._load("prompt_tokens")
        self.rewards, self.given, self.source = self._load("rewards"), self._load("given"), self._load("source")
        self.valid, self.verdict = self._load("valid"), self._load("verdict")
        self.num_tokens, self.branch_tokens = self._load("num_tokens"), self._load("branch_tokens")
        self.untrained, self.duplicate_of = self._load("untrained"), self._load("duplicate_of")
        self.start = self._load("start")
        self.keys = self._load("keys")  # [N, K, 16], see `response_key`
        if meta["check"] != _check(folder):
            raise ValueError("the arrays are not those that were written")

    def _load(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # nothing cannot be mapped
            return np.load(path, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> TokenStore | None:
        """The store in `folder`, or None when it is absent or damaged (then it is written anew)."""
        try:
            store = cls(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(folder)  # its last use, for those who prune
        return store

    def numbered(self, names: Sequence[str]) -> TokenStore:
        """The store with `source` counting in a list that holds its own sources and perhaps another split's."""
        if list(names) == self.sources:
            return self
        place = np.array([*(list(names).index(name) for name in self.sources), -1], dtype=np.int32)
        other = copy.copy(self)
        other.source, other.sources = place[np.asarray(self.source)], list(names)
        return other

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def prompt(self, row: int) -> np.ndarray:
        """Token ids of a prompt, [L]."""
        start = self.prompt_start[row]
        return self.tokens[start : start + self.prompt_tokens[row]]

    def branch(self, row: int, column: int) -> np.ndarray:
        """Token ids of a response's branch, end-of-turn included."""
        start = self.start[row, column]
        return self.tokens[start : start + self.branch_tokens[row, column]]


class TokenWriter:
    """Write side: tokens go to disk as they come, columns grow in memory; one rename puts the folder in place.

    Used as a context, it leaves nothing behind when the work inside fails. A process that is killed leaves a hidden
    folder, which the next writer of the same store removes: the dead hold no locks.

    Args:
        sources: their numbering; where None they are numbered in sorted order.

    Raises:
        FuserlError: the cache cannot be written.
    """

    def __init__(self, folder: Path, sources: Sequence[str] | None = None) -> None:
        self.folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_orphans(folder)
            new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        except OSError as error:
            raise FuserlError(
                f"the token store cannot be written: {error.strerror or error}",
                where=str(folder.parent),
                hint="give another folder with `cache=DIR`",
            ) from error
        self.tokens = GrowingArray(new / "tokens.npy", np.int32)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.tokens.file, fcntl.LOCK_EX)
        self.part = new.rename(folder.parent / f".{folder.name}{new.name.removeprefix('.new')}")
        self.columns = {name: array(code) for name, (code, _, _) in COLUMNS.items()}
        self.sources, self.domains = Codes(sources), Codes()
        self.keys, self.ids = bytearray(), bytearray()
        self.id_ends, self.prompt_start = array("q"), array("q")
        self.prompt_tokens, self.num_responses = array("i"), array("i")

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        self.tokens.file.close()
        shutil.rmtree(self.part, ignore_errors=True)  # gone already, if all went well

    def add(
        self, group: PromptGroup, prompt: np.ndarray, branches: Sequence[np.ndarray], untrained: Sequence[int]
    ) -> None:
        """Append one group.

        Raises:
            FuserlError: the numbering of the sources is given and lacks one.
        """
        self.ids += group.id.encode()
        self.id_ends.append(len(self.ids))
        self.domains.add(group.domain)
        self.prompt_start.append(self.tokens.append(prompt))
        self.prompt_tokens.append(len(prompt))
        self.num_responses.append(len(group.responses))
        columns, first = self.columns, {}  # key -> (column, start) of the group's first response of that content
        for number, (response, branch, lead) in enumerate(zip(group.responses, branches, untrained, strict=True)):
            key = response_key(prompt, branch, lead)
            if key not in first:
                first[key] = number, self.tokens.append(branch)
            self.keys += key
            columns["duplicate_of"].append(first[key][0])
            columns["start"].append(first[key][1])
            columns["rewards"].append(np.nan if response.reward is None else response.reward)
            columns["given"].append(np.nan if response.weight is None else response.weight)
            columns["verdict"].append(VERDICT[response.verdict])
            columns["num_tokens"].append(len(branch) - lead)
            columns["branch_tokens"].append(len(branch))
            columns["untrained"].append(lead)
            self._number(response.source, group.id)

    def _number(self, source: str, group_id: str) -> None:
        try:
            self.sources.add(source)
        except KeyError:
            raise FuserlError(
                f"the source `{source}` is not among those that are numbered",
                where=f"group `{group_id}`",
                hint=f"they are {', '.join(self.sources.number)}",
            ) from None

    def close(self, notes: Any = None) -> TokenStore:
        """Put the folder in place. Another process may have been first: its folder has the same content.

        Args:
            notes: kept beside the tokens (JSON).
        """
        self.tokens.finish()
        self._write_columns()
        for file in self.part.iterdir():  # a rename must not reach the disk before what it names
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sources, domains = self.sources.finish()[0], self.domains.finish()[0]
        meta = {"sources": sources, "domains": domains, "notes": notes, "check": _check(self.part)}
        with (self.part / "meta.json").open("w", encoding="utf-8") as file:
            file.write(json.dumps(meta, ensure_ascii=True))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.rename(self.part, self.folder)
        except OSError:
            if TokenStore.open(self.folder) is None:  # damaged: ours replaces it
                shutil.rmtree(self.folder, ignore_errors=True)
                os.rename(self.part, self.folder)
            else:
                shutil.rmtree(self.part)
        self.tokens.file.close()
        return TokenStore(self.folder)

    def _write_columns(self) -> None:
        """Pad the responses' columns to a table [N, K] each."""
        counts = np.frombuffer(self.num_responses, dtype=np.int32)
        valid = np.arange(max(1, counts.max(initial=0))) < counts[:, None]

        def save(name: str, values: np.ndarray) -> None:
            np.save(self.part / f"{name}.npy", values)

        def table(values: np.ndarray, filler: Any) -> np.ndarray:
            padded = np.full((*valid.shape, *values.shape[1:]), filler, dtype=values.dtype)
            padded[valid] = values
            return padded

        for name, (_, dtype, filler) in COLUMNS.items():
            save(name, table(np.frombuffer(self.columns[name], dtype=dtype), filler))
        save("valid", valid)
        save("source", table(self.sources.finish()[1], -1))
        save("keys", table(np.frombuffer(self.keys, np.uint8).reshape(-1, 16), 0))
        save("domain", self.domains.finish()[1])
        save("ids", np.frombuffer(self.ids, np.uint8))
        save("id_ends", np.frombuffer(self.id_ends, np.int64))
        save("prompt_start", np.frombuffer(self.prompt_start, np.int64))
        save("prompt_tokens", np.frombuffer(self.prompt_tokens, np.int32))


def _remove_orphans(folder: Path) -> None:
    """Remove what killed writers of this store left: folders whose tokens nobody has locked."""
    for part in folder.parent.glob(f".{folder.name}-*"):
        try:
            with (part / "tokens.npy").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            continue  # somebody is writing it, or has just begun


def _check(folder: Path) -> str:
    """Of every array's size and bytes; of a larger one's, blocks spread evenly over it.

    What is mostly the matter shows in every block: files that are missing, cut, emptied or zeroed, or of another version.
    """
    found = []
    for file in sorted(folder.glob("*.npy")):
        size = file.stat().st_size
        total = crc32(file) if size <= WHOLE else _of_blocks(file, size)
        found.append(f"{file.name} {size} {total:08x}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def _of_blocks(file: Path, size: int) -> int:
    total = 0
    with file.open("rb") as opened:
        for number in range(BLOCKS):
            opened.seek(number * max(0, size - BLOCK) // (BLOCKS - 1))
            total = zlib.crc32(opened.read(BLOCK), total)
    return total

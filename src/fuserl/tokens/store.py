"""Tokenised groups in memory-mapped arrays, in a folder named by content. Written whole or not at all; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fuserl.records.schema import PromptGroup

VERDICT = {None: -1, "wrong": 0, "right": 1, "unknown": 2}
BLOCKS, BLOCK = 64, 4096  # of every array that are looked at when a store is opened
COLUMNS = {  # [N, K] columns and what stands where there is no response
    "rewards": (np.float64, np.nan),
    "given": (np.float64, np.nan),
    "source": (np.int32, -1),
    "valid": (np.bool_, False),
    "verdict": (np.int8, -1),
    "num_tokens": (np.int32, 0),  # trained tokens, end-of-turn counted
    "branch_tokens": (np.int32, 0),  # with the untrained ones
    "untrained": (np.int32, 0),
    "duplicate_of": (np.int32, -1),  # column of the group's first identical response
    "start": (np.int64, 0),  # where the branch begins in `tokens`
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
        self.ids: list[str] = meta["ids"]
        self.domains: list[str] = meta["domains"]
        self.sources: list[str] = meta["sources"]
        self.tokens = self._load("tokens")
        self.prompt_start, self.prompt_tokens = self._load("prompt_start"), self._load("prompt_tokens")
        self.rewards, self.given, self.source = self._load("rewards"), self._load("given"), self._load("source")
        self.valid, self.verdict = self._load("valid"), self._load("verdict")
        self.num_tokens, self.branch_tokens = self._load("num_tokens"), self._load("branch_tokens")
        self.untrained, self.duplicate_of = self._load("untrained"), self._load("duplicate_of")
        self.start = self._load("start")
        self.keys = self._load("keys")  # [N, K, 16], see `response_key`
        if int(meta["num_tokens"]) != len(self.tokens) or meta["check"] != _check(folder):
            raise ValueError("the arrays are not those that were written")

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

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

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self, row: int) -> np.ndarray:
        """Token ids of a prompt, [L]."""
        start = self.prompt_start[row]
        return self.tokens[start : start + self.prompt_tokens[row]]

    def branch(self, row: int, column: int) -> np.ndarray:
        """Token ids of a response's branch, end-of-turn included."""
        start = self.start[row, column]
        return self.tokens[start : start + self.branch_tokens[row, column]]


class TokenWriter:
    """Write side: collects groups, then puts the whole folder in place with one rename."""

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        self.folder, self.sources = folder, list(sources)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        self.raw = (self.part / "tokens.raw").open("wb")
        self.length = 0
        self.ids: list[str] = []
        self.domains: list[str] = []
        self.prompts: list[tuple[int, int]] = []
        self.rows: list[dict[str, list[Any]]] = []
        self.keys: list[bytes] = []  # of each group's responses, joined

    def add(
        self, group: PromptGroup, prompt: np.ndarray, branches: Sequence[np.ndarray], untrained: Sequence[int]
    ) -> None:
        """Append one group."""
        self.ids.append(group.id)
        self.domains.append(group.domain)
        self.prompts.append((self._append(prompt), len(prompt)))
        row: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        keys = [response_key(prompt, branch, lead) for branch, lead in zip(branches, untrained, strict=True)]
        self.keys.append(b"".join(keys))
        first: dict[bytes, int] = {}
        for column, (response, branch, lead) in enumerate(zip(group.responses, branches, untrained, strict=True)):
            same = first.setdefault(branch.tobytes() + b"|%d" % lead, column)
            row["duplicate_of"].append(same)
            row["start"].append(self._append(branch) if same == column else row["start"][same])
            row["rewards"].append(np.nan if response.reward is None else response.reward)
            row["given"].append(np.nan if response.weight is None else response.weight)
            row["source"].append(self.sources.index(response.source))
            row["valid"].append(True)
            row["verdict"].append(VERDICT[response.verdict])
            row["num_tokens"].append(len(branch) - lead)
            row["branch_tokens"].append(len(branch))
            row["untrained"].append(lead)
        self.rows.append(row)

    def _append(self, tokens: np.ndarray) -> int:
        start = self.length
        self.raw.write(np.ascontiguousarray(tokens, dtype=np.int32).tobytes())
        self.length += len(tokens)
        return start

    def close(self) -> TokenStore:
        """Put the folder in place. Another process may have been first: its folder has the same content."""
        self.raw.close()
        flat = np.fromfile(self.part / "tokens.raw", dtype=np.int32)
        np.save(self.part / "tokens.npy", flat)
        (self.part / "tokens.raw").unlink()
        starts = np.array(self.prompts, dtype=np.int64).reshape(-1, 2)
        np.save(self.part / "prompt_start.npy", starts[:, 0])
        np.save(self.part / "prompt_tokens.npy", starts[:, 1].astype(np.int32))
        width = max((len(row["valid"]) for row in self.rows), default=1)
        for name, (dtype, filler) in COLUMNS.items():
            table = np.full((len(self.rows), width), filler, dtype=dtype)
            for number, row in enumerate(self.rows):
                table[number, : len(row[name])] = row[name]
            np.save(self.part / f"{name}.npy", table)
        joined = np.zeros((len(self.rows), width, 16), dtype=np.uint8)
        for number, keys in enumerate(self.keys):
            joined[number, : len(keys) // 16] = np.frombuffer(keys, np.uint8).reshape(-1, 16)
        np.save(self.part / "keys.npy", joined)
        meta = {"ids": self.ids, "domains": self.domains, "sources": self.sources, "num_tokens": self.length}
        meta["check"] = _check(self.part)
        (self.part / "meta.json").write_text(json.dumps(meta, ensure_ascii=True), encoding="utf-8")
        for file in self.part.iterdir():  # a rename must not reach the disk before what it names
            with file.open("rb") as written:
                os.fsync(written.fileno())
        try:
            os.rename(self.part, self.folder)
        except OSError:
            if TokenStore.open(self.folder) is None:  # damaged: ours replaces it
                shutil.rmtree(self.folder, ignore_errors=True)
                os.rename(self.part, self.folder)
            else:
                shutil.rmtree(self.part)
        return TokenStore(self.folder)


def _check(folder: Path) -> str:
    """Of every array's size and of blocks spread evenly over it: tells damage at once, however large the store is."""
    content = hashlib.sha256()
    for file in sorted(folder.glob("*.npy")):
        size = file.stat().st_size
        content.update(f"{file.name}{size}".encode())
        with file.open("rb") as array:
            for number in range(BLOCKS):
                array.seek(number * max(0, size - BLOCK) // (BLOCKS - 1))
                content.update(array.read(BLOCK))
    return content.hexdigest()[:16]

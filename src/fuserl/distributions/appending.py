"""Write side of `store`: texts are appended one by one, and a run that was killed continues where it was."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fuserl.distributions.store import LAYOUT, LOWEST, differs, places_of, plain, read_meta, record
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.records.journal import Journal, locked
from fuserl.records.manifest import write_text_atomically


class DistributionsWriter:
    """Write side; one process at a time. A store that was begun is continued.

    Args:
        k: entries a token.
        vocabulary: ids are below it.
        made_from: what decides the numbers: model, tokenizer, template, texts.

    Raises:
        FuserlError: the folder holds distributions of something else, or another process writes it.
    """

    def __init__(self, folder: str | Path, *, k: int, vocabulary: int, made_from: Mapping[str, Any]) -> None:
        self.folder, self.k, self.vocabulary = Path(folder), k, vocabulary
        self.dtype = record(k, vocabulary)
        self._lock = locked(self.folder)
        self._lock.__enter__()
        meta = {"layout": LAYOUT, "k": k, "vocabulary": vocabulary, "made_from": plain(made_from)}
        try:
            if (self.folder / "meta.json").exists():
                known = read_meta(self.folder)
                if known != meta:
                    raise FuserlError(
                        "the folder holds distributions of something else", **differs(self.folder, known, made_from)
                    )
            else:
                write_text_atomically(self.folder / "meta.json", json.dumps(meta, indent=1))
            self._journal = Journal(self.folder / "samples.jsonl")
            places = places_of(self.folder / "samples.jsonl")
            self.num_rows = max((place["start"] + place["tokens"] for place in places.values()), default=0)
            path = self.folder / "rows.bin"
            path.touch()
            self._file = path.open("r+b")
            if path.stat().st_size < self.num_rows * self.dtype.itemsize:
                raise FuserlError(
                    "the distributions are damaged: rows are missing",
                    where=str(self.folder / "rows.bin"),
                    hint="remove the folder and run the same command again",
                )
            self._file.truncate(self.num_rows * self.dtype.itemsize)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def __contains__(self, key: str) -> bool:
        return key in self._journal

    def add(
        self,
        key: str,
        top: TopK,
        *,
        ce: Float[np.ndarray, " tokens"] | None = None,
        tail: Float[np.ndarray, " tokens"] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Append one text; False where it is there already.

        Args:
            top: at most k entries a row, -1 where there is none.
            ce: nats with which each token was read.
            tail: log of the mass that is not kept; -inf for none.
            notes: kept beside the rows (JSON).

        Raises:
            FuserlError: entries do not fit, or the disk is full.
        """
        if key in self:
            return False
        rows = self._records(key, top, ce, tail)
        try:
            self._file.seek(self.num_rows * self.dtype.itemsize)  # over what a write that failed has left
            self._file.write(rows.tobytes())
            self._file.flush()
        except OSError as error:
            raise FuserlError(
                f"distributions cannot be written: {error.strerror or error}",
                where=str(self.folder),
                hint="make room and run the same command again",
            ) from error
        place = {
            "start": self.num_rows,
            "tokens": len(rows),
            "crc": zlib.crc32(rows.tobytes()),
            "notes": dict(notes or {}),
        }
        self._journal.add(key, place)
        self.num_rows += len(rows)
        return True

    def _records(self, key: str, top: TopK, ce: np.ndarray | None, tail: np.ndarray | None) -> np.ndarray:
        if top.ids.shape[1] > self.k or top.ids.max(initial=-1) >= self.vocabulary:
            raise FuserlError(
                f"rows of {top.ids.shape[1]} entries with ids up to {top.ids.max(initial=-1)} do not fit a store of {self.k} below {self.vocabulary}",
                where=f"text `{key}`",
            )
        present = top.ids >= 0
        if np.isnan(np.where(present, top.logps, 0)).any():
            raise FuserlError(
                "a log-probability is no number",
                where=f"text `{key}`",
                hint="the model computes NaN; try another dtype",
            )
        rows = np.zeros(len(top), self.dtype)
        nothing = np.iinfo(self.dtype["ids"].base).max
        wide = top.padded(self.k)
        rows["ids"] = np.where(wide.ids >= 0, wide.ids, nothing)
        rows["logps"] = np.maximum(np.where(wide.ids >= 0, wide.logps, -np.inf), LOWEST)
        rows["ce"] = np.nan if ce is None else ce
        rows["tail"] = LOWEST if tail is None else np.maximum(tail, LOWEST)
        return rows

    def close(self) -> None:
        """Wait until the disk has it all."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._journal.close()
        self._lock.__exit__(None, None, None)

    def __enter__(self) -> DistributionsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Sparse distributions on disk: one record a token, appended, resumed after a kill, read in place.

`rows.bin` holds records of fixed size: ids (uint16 or uint32 by vocabulary), log-probs in fp16, the log of the mass that is
not kept in fp16, the token's own cross-entropy in fp32. At k = 10 that is 48 bytes a token for vocabularies up to 65,535 tokens and
68 bytes above. `samples.jsonl` says which rows a text has, and is written after them: what a killed process left behind the last
text is cut off. `meta.json` says what all of it was made from.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt

from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.records.journal import checked

LAYOUT = 1
CHECKED = 64  # texts, spread evenly, whose rows are checked when a store is opened
LOWEST = float(np.finfo(np.float16).min)


def record(k: int, vocabulary: int) -> np.dtype:
    """One token's record; the place without a token holds the largest id.

    >>> record(10, 32000).itemsize, record(10, 151936).itemsize
    (48, 68)
    """
    ids = np.uint16 if vocabulary < 2**16 else np.uint32
    fields = [("ids", ids, (k,)), ("ce", np.float32), ("logps", np.float16, (k,)), ("tail", np.float16)]
    return np.dtype(fields, align=True)


@dataclass(frozen=True)
class Sample:
    """One text's rows, in place."""

    rows: np.ndarray  # records, see `record`
    notes: Mapping[str, Any]  # what was kept beside them

    @property
    def ids(self) -> UInt[np.ndarray, "tokens k"]:
        """Token ids, the likeliest first; no copy."""
        return self.rows["ids"]

    @property
    def logps(self) -> Float[np.ndarray, "tokens k"]:
        """Nats; no copy."""
        return self.rows["logps"]

    @property
    def ce(self) -> Float[np.ndarray, " tokens"]:
        """Nats with which each token was read; NaN for the first one."""
        return self.rows["ce"]

    @property
    def tail(self) -> Float[np.ndarray, " tokens"]:
        """Log of the probability that is not kept."""
        return self.rows["tail"]

    def top_k(self) -> TopK:
        """A copy for computing: -1 and -inf where there is no token."""
        empty = self.ids == np.iinfo(self.ids.dtype).max
        ids = np.where(empty, -1, self.ids.astype(np.int64))
        return TopK(ids, np.where(empty, -np.inf, self.logps.astype(np.float64)))


class Distributions:
    """Read side.

    Raises:
        FuserlError: the folder is no store, was made from something else, or does not hold what was written.
    """

    def __init__(self, folder: str | Path, made_from: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        meta = read_meta(self.folder)
        if made_from is not None and meta["made_from"] != plain(made_from):
            raise FuserlError(
                "the distributions were made from something else", **differs(self.folder, meta, made_from)
            )
        self.k, self.vocabulary, self.made_from = meta["k"], meta["vocabulary"], meta["made_from"]
        self.dtype = record(self.k, self.vocabulary)
        self._places = places_of(self.folder / "samples.jsonl")
        rows = max((place["start"] + place["tokens"] for place in self._places.values()), default=0)
        path = self.folder / "rows.bin"
        if rows * self.dtype.itemsize > (path.stat().st_size if path.is_file() else 0):
            raise self._damaged("it is shorter than what was written")
        shape = (rows,)
        self.rows = np.memmap(path, self.dtype, "r", shape=shape) if rows else np.zeros(0, self.dtype)
        keys = list(self._places)
        for number in range(min(CHECKED, len(keys))):
            self.check(keys[number * (len(keys) - 1) // max(1, min(CHECKED, len(keys)) - 1)])

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> Sample:
        """A text's rows.

        Raises:
            FuserlError: there is no such text.
        """
        if key not in self._places:
            raise FuserlError(
                f"there are no distributions of `{key}`", where=str(self.folder), hint="run `fuserl align` on it"
            )
        place = self._places[key]
        return Sample(self.rows[place["start"] : place["start"] + place["tokens"]], place["notes"])

    def check(self, key: str) -> None:
        """A text's rows are those that were written.

        Raises:
            FuserlError: they are not.
        """
        if zlib.crc32(self[key].rows.tobytes()) != self._places[key]["crc"]:
            raise self._damaged(f"the rows of `{key}` are not those that were written")

    def _damaged(self, what: str) -> FuserlError:
        return FuserlError(
            f"the distributions are damaged: {what}",
            where=str(self.folder / "rows.bin"),
            hint="remove the folder and run the same command again",
        )


def read_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a store.

    Raises:
        FuserlError: there is none, or another layout's.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["layout"] != LAYOUT:
            raise ValueError(f"layout {meta['layout']}, this fuserl has {LAYOUT}")
        record(int(meta["k"]), int(meta["vocabulary"]))
        return meta | {"made_from": dict(meta["made_from"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FuserlError(
            f"the folder holds no distributions that can be read ({error})",
            where=str(folder),
            hint="give a folder that `fuserl align` wrote",
        ) from error


def places_of(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> where its rows are, in order; a torn last line is none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            place = json.loads(checked(line))
            found.setdefault(place.pop("key"), place)
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise FuserlError(
                f"a line is no record ({error!r})",
                where=f"{path}, line {number + 1}",
                hint="remove the folder and run the same command again",
            ) from error
    return found


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(dict(value), sort_keys=True))


def differs(folder: Path, meta: Mapping[str, Any], made_from: Mapping[str, Any]) -> dict[str, str]:
    """Where and hint of the error that says what two stores were made from."""
    wanted, known = plain(made_from), meta["made_from"]
    names = [name for name in sorted(wanted.keys() | known.keys()) if wanted.get(name) != known.get(name)]
    what = f"({', '.join(names)})" if names else "(k or vocabulary)"
    return {"where": f"{folder} {what}", "hint": "give another folder with `output=DIR`"}

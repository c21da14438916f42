"""The distributions that a run learns from: opened and checked before a model is loaded, read in place for each pack."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fuserl.distributions.store import LOWEST, Distributions
from fuserl.errors import FuserlError
from fuserl.tokens.collate import Support
from fuserl.tokens.plan import first_of_kind
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import Template

CHUNK = 2**18  # rows that are checked at a time
ALIGN = (
    "run `fuserl align` with the same data, target and template, and with the same `pool` and `size` of responses; then "
    "give its `DIR/fused/NAME`"
)


class FusedTexts:
    """What the sources expect at the trained tokens of the responses that a run reads.

    Args:
        folder: as `fuserl align` wrote it.
        used: [N, K], responses of the store that the run reads, in the rows that it plans.
        rows: these rows.
        vocabulary: tokens of the target's head, which may be more than its tokenizer has.

    Raises:
        FuserlError: there is no such store, it is another target's or another template's, it lacks texts, or its rows
            do not fit them.
    """

    def __init__(
        self,
        folder: str | Path,
        store: TokenStore,
        used: np.ndarray,
        rows: np.ndarray,
        *,
        template: Template,
        vocabulary: int,
    ) -> None:
        self.store, self.found = store, Distributions(Path(folder).expanduser())
        self._check_origin(template)
        place = first_of_kind(store, used, rows)
        self._texts = np.stack([rows[np.nonzero(place)[0]], np.nonzero(place)[1]], axis=1)
        self._check_texts()
        self.given = self._check_rows(vocabulary)

    def __call__(self, row: int, column: int) -> Support:
        """Of one response of the store."""
        sample = self.found[self._key(row, column)]
        top, tail = sample.top_k(), sample.tail.astype(np.float64)
        return Support(top.ids, np.where(top.ids >= 0, top.logps, 0.0), np.where(tail <= LOWEST, -np.inf, tail))

    def identity(self) -> dict[str, Any]:
        """Which distributions these are: by content, and what they were made from."""
        content = hashlib.sha256()
        for name in ("meta.json", "samples.jsonl"):  # the latter holds a checksum of each text's rows
            content.update((self.found.folder / name).read_bytes())
        return {
            "path": str(self.found.folder),
            "digest": content.hexdigest()[:24],
            "k": self.found.k,
            "given": self.given,
            "made_from": self.found.made_from,
        }

    def _key(self, row: int, column: int) -> str:
        return bytes(self.store.keys[row, column]).hex()

    def _check_origin(self, template: Template) -> None:
        known = self.found.made_from
        wanted = {"tokenizer": template.tokenizer_digest, "template": template.hash}
        if wrong := [name for name, value in wanted.items() if known.get(name) != value]:
            raise self._error(
                f"the distributions were made for another {' and another '.join(wrong)} than the target's"
            )

    def _check_texts(self) -> None:
        """All are there, with a row for each trained token."""
        keys = [self._key(row, column) for row, column in self._texts.tolist()]
        if missing := [place for place, key in enumerate(keys) if key not in self.found]:
            raise self._error(
                f"{len(missing)} of {len(keys)} texts have no distributions, the first is {self._named(missing[0])}"
            )
        num_rows = np.array([len(self.found[key].rows) for key in keys], dtype=np.int64)
        trained = np.asarray(self.store.num_tokens)[tuple(self._texts.T)]
        if len(wrong := np.flatnonzero(num_rows != trained)):
            first = int(wrong[0])
            raise self._error(
                f"{len(wrong)} of {len(keys)} texts have another number of distributions than of trained tokens, the first "
                f"is {self._named(first)}: {num_rows[first]} for {trained[first]}"
            )

    def _check_rows(self, vocabulary: int) -> float:
        """Their ids are the target's, and differ; the share of the trained tokens that have any."""
        nothing = np.iinfo(self.found.dtype["ids"].base).max
        num_given = num_rows = 0
        for ids, place in self._in_chunks():
            there = ids != nothing
            ordered = np.sort(ids, axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != nothing)
            for what, wrong in (
                (f"ids that the target does not have (it has {vocabulary})", there & (ids >= vocabulary)),
                ("a token twice for one place", twice),
            ):
                if len(at := np.flatnonzero(wrong.any(axis=1))):
                    raise self._error(f"the distributions hold {what}, first in {self._named(int(place[at[0]]))}")
            num_given += int(there.any(axis=1).sum())
            num_rows += len(ids)
        return num_given / max(1, num_rows)

    def _in_chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids of all rows of some texts, the text of each row)."""
        num_rows = np.asarray(self.store.num_tokens)[tuple(self._texts.T)]
        cuts = np.flatnonzero(np.diff(np.cumsum(num_rows) // CHUNK)) + 1
        for places in np.split(np.arange(len(num_rows)), cuts):
            parts = [self.found[self._key(row, column)].ids for row, column in self._texts[places].tolist()]
            yield np.concatenate(parts), np.repeat(places, num_rows[places])

    def _named(self, place: int) -> str:
        row, column = self._texts[place].tolist()
        return f"response {column + 1} of prompt `{self.store.ids[row]}`"

    def _error(self, what: str) -> FuserlError:
        return FuserlError(what, where=f"`objective.distillation.path={self.found.folder}`", hint=ALIGN)

"""Every model reads every text once: the likeliest next tokens, the mass of the others, the text's cross-entropy."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.readers import Reader
from fuserl.distributions.store import Distributions
from fuserl.distributions.texts import Texts
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.records.journal import BusyFolder
from fuserl.terminal import bar, say
from fuserl.tokens.plan import GroupCosts, next_fit
from fuserl.tokens.store import TokenStore

WAIT = 1.0  # seconds between two looks at a folder that another process writes
TOO_LONG, NO_NUMBER = "longer than the model", "no number"  # why a model could not read a text


class Read(NamedTuple):
    """A response as a model read it. Row i: what the model expected where its i-th trained token stands."""

    row: int
    column: int
    top: TopK  # likeliest first
    ce: Float[np.ndarray, " tokens"]  # nats of the token that stands there
    tail: Float[np.ndarray, " tokens"]  # log of the probability of all tokens that are not in `top`


@runtime_checkable
class Opened(Protocol):
    """A model that is loaded."""

    def read(self, store: TokenStore, rows: Sequence[int], used: Bool[np.ndarray, "N K"]) -> Iterator[Read]:
        """Every used response of some groups. NaN in `ce` says that it could not be read."""
        ...


@runtime_checkable
class Collector(Protocol):
    """What runs a model over texts."""

    max_tokens: int  # of the groups that are given to `Opened.read` together

    def identity(self) -> Mapping[str, Any]:
        """What of it decides numbers."""
        ...

    def opened(self, reader: Reader, k: int) -> AbstractContextManager[Opened]:
        """Load the model; k entries a position."""
        ...


def collected(
    reader: Reader, texts: Texts, collector: Collector, cache: Path, *, k: int, progress_bar: bool
) -> Distributions:
    """Distributions of a model on texts, from the cache or computed; a killed run continues where it was.

    Groups are read in fixed packs, so that what is read again after a kill is what was read before it. A text that the
    model has no positions for, or computes no number on, is kept without tokens, with the reason in its notes.

    Raises:
        FuserlError: the model cannot be loaded or run, or the disk is full.
    """
    made_from = {
        **reader.model.identity(),
        "by": dict(collector.identity()),
        "tokenizer": reader.template.tokenizer_digest,
        "template": reader.template.hash,
        "tokens": reader.store.digest,
        "texts": _digest([[*place, key] for place, key in texts.key_of.items()]),
        "context": reader.context,
    }
    folder = cache / "distributions" / _digest([made_from, k, len(reader.vocabulary)])
    with _alone(reader, folder, k=k, made_from=made_from) as writer:
        readable = texts.used & np.asarray(reader.store.valid) & ~reader.too_long()
        for place, key in texts.key_of.items():
            if not readable[place]:
                _add_unread(writer, key, int(reader.store.num_tokens[place]), TOO_LONG)
        packs = _packs(reader.store, readable, collector.max_tokens)
        todo = [pack for pack in packs if not all(key in writer for key in _keys_in(pack, texts, readable))]
        if len(todo) < len(packs):
            say(f"{reader.model.name}: {len(packs) - len(todo):,} of {len(packs):,} packs read before")
        if todo:
            told = bar(f"reading by {reader.model.name}", lambda: len(todo), show=progress_bar)
            with collector.opened(reader, k) as model, told as tell:
                for number, pack in enumerate(todo):
                    for one in _read(model, reader.store, pack, readable):
                        _add(writer, texts.key_of[one.row, one.column], one)
                    tell(number + 1, f"{writer.num_rows:,} tokens")
    return Distributions(folder, made_from)


def _read(model: Opened, store: TokenStore, pack: np.ndarray, readable: np.ndarray) -> Iterator[Read]:
    """What a model says of a pack. A text without numbers is read again alone: NaN goes over to its neighbours."""
    for one in list(model.read(store, pack.tolist(), readable)):
        if not _has_numbers(one) and readable[pack].sum() > 1:
            alone = np.zeros_like(readable)
            alone[one.row, one.column] = True
            (one,) = model.read(store, [one.row], alone)
        yield one


def _has_numbers(one: Read) -> bool:
    return bool(np.isfinite(one.ce).all()) and not np.isnan(np.where(one.top.ids >= 0, one.top.logps, 0)).any()


def _alone(reader: Reader, folder: Path, *, k: int, made_from: Mapping[str, Any]) -> DistributionsWriter:
    """The writer, once no other process that reads the same texts by the same model holds it."""
    told = False
    while True:
        try:
            return DistributionsWriter(folder, k=k, vocabulary=len(reader.vocabulary), made_from=made_from)
        except BusyFolder:
            if not told:
                say(f"{reader.model.name}: another process reads these texts; waiting for it")
            told = True
            time.sleep(WAIT)


def _packs(store: TokenStore, readable: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    rows = np.flatnonzero(readable.any(axis=1))
    return [rows[members] for members in next_fit(GroupCosts.of(store, readable, rows).tokens, max_tokens)]


def _keys_in(pack: np.ndarray, texts: Texts, readable: np.ndarray) -> Iterator[str]:
    for row in pack.tolist():
        for column in np.flatnonzero(readable[row]).tolist():
            yield texts.key_of[row, column]


def _add(writer: DistributionsWriter, key: str, one: Read) -> None:
    if not _has_numbers(one):
        _add_unread(writer, key, len(one.ce), NO_NUMBER)
        return
    notes = {"nats": float(one.ce.sum()), "unread": None}
    writer.add(key, one.top, ce=one.ce.astype(np.float32), tail=one.tail, notes=notes)


def _add_unread(writer: DistributionsWriter, key: str, num_tokens: int, why: str) -> None:
    nothing = TopK(np.full((num_tokens, 1), -1), np.full((num_tokens, 1), -np.inf))
    writer.add(key, nothing, ce=None, tail=np.zeros(num_tokens), notes={"nats": None, "unread": why})


def count_setting(name: str, value: object) -> int:
    """A setting of a collector that counts something.

    Raises:
        FuserlError: it is no whole number, or less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FuserlError(f"`{name}` is {value!r}", where=f"`collector.{name}`", hint="a whole number, 1 or more")
    return value


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

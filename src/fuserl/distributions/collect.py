"""Every model reads every text once: the likeliest next tokens, the mass of the others, the text's cross-entropy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float

from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.readers import Reader
from fuserl.distributions.store import Distributions
from fuserl.distributions.topk import TopK
from fuserl.terminal import bar, say
from fuserl.tokens.plan import GroupCosts, next_fit
from fuserl.tokens.store import TokenStore


class Read(NamedTuple):
    """A response as a model read it. Row i: what the model expected where its i-th trained token stands."""

    row: int
    column: int
    top: TopK  # likeliest first
    ce: Float[np.ndarray, " tokens"]  # nats of the token that stands there
    tail: Float[np.ndarray, " tokens"]  # log of the probability of all tokens that are not in `top`


class Opened(Protocol):
    """A model that is loaded."""

    def read(self, store: TokenStore, rows: Sequence[int], used: Bool[np.ndarray, "N K"]) -> Iterator[Read]:
        """Every different used response of some groups."""
        ...


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
    reader: Reader,
    keys: Mapping[tuple[int, int], str],
    used: Bool[np.ndarray, "N K"],
    collector: Collector,
    cache: Path,
    *,
    k: int,
    progress_bar: bool,
) -> Distributions:
    """Distributions of a model on texts, from the cache or computed; a killed run continues where it was.

    Groups are read in fixed packs, so that what is read again after a kill is what was read before it.

    Args:
        keys: (row, column) -> under which key a text is kept; the same for all models.
        used: responses to read.

    Raises:
        FuserlError: the model cannot be loaded or run, computes NaN throughout, or the disk is full.
    """
    store = reader.store
    texts = hashlib.sha256(json.dumps(sorted(keys.values())).encode()).hexdigest()[:24]
    made_from = {
        **reader.model.identity(),
        "by": dict(collector.identity()),
        "tokenizer": reader.template.tokenizer_digest,
        "template": reader.template.hash,
        "tokens": store.digest,
        "texts": texts,
    }
    vocabulary = len(reader.vocabulary)
    name = hashlib.sha256(json.dumps([made_from, k, vocabulary], sort_keys=True).encode()).hexdigest()[:24]
    folder = cache / "distributions" / name
    rows = np.flatnonzero((used & np.asarray(store.valid)).any(axis=1))
    packs = [rows[members] for members in next_fit(GroupCosts.of(store, used, rows).tokens, collector.max_tokens)]
    with DistributionsWriter(folder, k=k, vocabulary=vocabulary, made_from=made_from) as writer:
        todo = [pack for pack in packs if not all(key in writer for key in _keys_in(pack, keys, used))]
        say(f"{reader.model.name}: {len(packs) - len(todo):,} of {len(packs):,} packs read before")
        if todo:
            _read_all(reader, keys, used, collector, writer, todo, k, progress_bar)
    return Distributions(folder, made_from)


def _read_all(
    reader: Reader,
    keys: Mapping[tuple[int, int], str],
    used: np.ndarray,
    collector: Collector,
    writer: DistributionsWriter,
    packs: Sequence[np.ndarray],
    k: int,
    progress_bar: bool,
) -> None:
    tokens = 0
    with (
        collector.opened(reader, k) as model,
        bar(f"reading by {reader.model.name}", lambda: len(packs), show=progress_bar) as told,
    ):
        for number, pack in enumerate(packs):
            for one in model.read(reader.store, pack.tolist(), used):
                broken = bool(np.isnan(np.where(one.top.ids >= 0, one.top.logps, 0)).any() or np.isnan(one.ce).any())
                writer.add(
                    keys[one.row, one.column],
                    _nothing(one.top) if broken else one.top,
                    ce=one.ce.astype(np.float32),
                    tail=np.where(np.isnan(one.tail), 0.0, one.tail),
                    notes={"nats": None if broken else float(one.ce.sum())},
                )
                tokens += len(one.ce)
            told(number + 1, f"{tokens:,} tokens")


def _nothing(top: TopK) -> TopK:
    return TopK(np.full_like(top.ids, -1), np.full_like(top.logps, -np.inf))


def _keys_in(pack: np.ndarray, keys: Mapping[tuple[int, int], str], used: np.ndarray) -> Iterator[str]:
    for row in pack.tolist():
        for column in np.flatnonzero(used[row]).tolist():
            if (row, column) in keys:
                yield keys[row, column]

"""Stores of distributions for the responses that a small run reads, as `fuserl align` promises to write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuserl.distributions.appending import DistributionsWriter
from fuserl.distributions.topk import TopK
from fuserl.settings import compose
from fuserl.tokens.store import TokenStore
from fuserl.training.setup import data_of

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids and log-probs [n, k], tail [n]
K = 4


def read(settings: list[str]) -> tuple[TokenStore, dict[str, str], int]:
    """(tokens, what a store for them is made from, size of the vocabulary) of a run of any other objective."""
    _, template, prepared = data_of(compose("train", settings))
    made_from = {"tokenizer": template.tokenizer_digest, "template": template.hash}
    return prepared.train.store, made_from, len(template.tokenizer)


def labels(store: TokenStore, row: int, column: int) -> np.ndarray:
    """The trained tokens of a response."""
    return store.branch(row, column)[int(store.untrained[row, column]) :]


def write(
    folder: Path, data: tuple[TokenStore, dict[str, str], int], rows: Callable[[np.ndarray], Rows | None]
) -> Path:
    """`rows` says what is expected in the places of a response's labels; None leaves the response out."""
    store, made_from, vocabulary = data
    with DistributionsWriter(folder, k=K, vocabulary=vocabulary, made_from=made_from) as writer:
        for row in range(len(store)):
            for column in np.flatnonzero(store.valid[row]).tolist():
                if (found := rows(labels(store, row, column))) is not None:
                    ids, logps, tail = found
                    writer.add(bytes(store.keys[row, column]).hex(), TopK(ids, logps), tail=tail)
    return folder


def noisy(tokens: np.ndarray) -> Rows:
    """Anything, decided by the tokens: other ids everywhere, about a fourth of the places empty, a tail."""
    rng = np.random.default_rng(tokens.astype(np.int64).tolist())
    ids = np.argsort(rng.random((len(tokens), 36)), axis=1)[:, :K].astype(np.int64) + 3
    logps = np.log(rng.dirichlet(np.ones(K + 1), len(tokens)))
    ids[rng.random(len(tokens)) < 0.25] = -1
    ids[rng.random(len(tokens)) < 0.5, -1] = -1
    return ids, np.where(ids >= 0, logps[:, :K], -np.inf), logps[:, K]


def gold(tokens: np.ndarray, shift: int = 0) -> Rows:
    """All probability on the token that stands `shift` places earlier: 0 is right."""
    ids = np.roll(tokens.astype(np.int64), shift)[:, None]
    return ids, np.zeros(ids.shape), np.full(len(ids), -np.inf)


def nothing(tokens: np.ndarray) -> Rows:
    """No token anywhere."""
    return np.full((len(tokens), 1), -1), np.full((len(tokens), 1), -np.inf), np.full(len(tokens), -np.inf)

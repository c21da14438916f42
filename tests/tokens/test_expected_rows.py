"""Rows of what is expected stand where their labels stand: with copies, untrained leads, subsets and truncation."""

from __future__ import annotations

import numpy as np
import pytest
import real_tokenizers as real
import torch

from fuserl.tokens.collate import Support, collate
from fuserl.tokens.store import TokenStore, TokenWriter

K = 3


@pytest.fixture
def store(tmp_path) -> TokenStore:
    """Ragged groups of few distinct branches; every second response has an untrained first token."""
    rng = np.random.default_rng(0)
    writer = TokenWriter(tmp_path / "store", ["s"])
    for number in range(6):
        texts = [str(text) for text in range(rng.integers(1, 6))]
        group = real.group(f"{number}", *texts)
        branches = [rng.integers(1, 3, rng.integers(3, 6)) for _ in texts]
        writer.add(
            type(group)(f"p{number}", group.prompt, group.responses),
            rng.integers(5, 50, 4), branches, [at % 2 for at in range(len(texts))],
        )  # fmt: skip
    return writer.close()


def expected(store: TokenStore, row: int, column: int) -> Support:
    """Ids that say the response's content and the place: those of copies are the same."""
    key = int.from_bytes(bytes(store.keys[row, column])[:2], "big")
    places = np.arange(int(store.num_tokens[row, column]))
    ids = np.stack([np.full_like(places, key), places, np.full_like(places, -1)], axis=1)
    return Support(ids, -ids / 7.0, -places / 3.0)


@pytest.mark.parametrize("truncate", [None, 7])
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("multiple", [1, 64])
def test_each_label_has_the_row_of_its_place(store, truncate, share, multiple):
    used = np.random.default_rng(1).random(store.valid.shape) < share
    asked: list[tuple[int, int]] = []

    def support(row: int, column: int) -> Support:
        asked.append((row, column))
        return expected(store, row, column)

    rows = [4, 0, 2, 5]
    batch = collate(store, rows, used, truncate=truncate, multiple=multiple, support=support)
    assert batch.support_ids.shape == batch.support_logps.shape == (len(batch.labels), K)
    seen = set()
    for number, row in enumerate(rows):
        for column in range(batch.row.shape[1]):
            unique = int(batch.row[number, column])
            if unique < 0:
                continue
            whole, mine = expected(store, row, column), batch.owner == unique
            num = int(batch.num_tokens[number, column])
            assert batch.support_ids[mine].tolist() == whole.ids[:num].tolist(), "the first rows stay"
            assert torch.equal(batch.support_logps[mine], torch.from_numpy(whole.logps[:num]).float())
            assert torch.equal(batch.support_tail[mine], torch.from_numpy(whole.tail[:num]).float())
            seen.add(unique)
    assert len(asked) == len(set(asked)) == len(seen), "copies share their rows"


def test_a_pack_without_responses_has_no_rows(store):
    batch = collate(store, [0], np.zeros_like(store.valid), support=lambda *_: pytest.fail("nothing is asked"))
    assert len(batch.labels) == len(batch.support_ids) == len(batch.support_logps) == len(batch.support_tail) == 0
    assert collate(store, [0], np.array(store.valid)).support_ids is None

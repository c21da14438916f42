"""What released alignment code does wrong: each rule is written out and seen to differ from ours.

docs/alignment.md lists every item with its test; some are in other modules.
"""

from __future__ import annotations

import numpy as np
import published
import pytest

from fuserl.distributions import dtw, mapping, spans, topk
from fuserl.distributions.alignment import of_path
from fuserl.distributions.offsets import align_spans
from fuserl.distributions.topk import TopK

PLAIN = "A plain sentence of twelve tokens, or a few more than that."


def by_buffers(source: list[str], target: list[str]) -> list[tuple[int, int, int, int]]:
    """TRL's GOLD before its pull request 5885: two buffers of decoded tokens grow in turn; a group ends where they are equal.

    Returns:
        Groups as (source from, to, target from, to); what is left at the end is one group.
    """
    groups, i, j, start, one, other = [], 0, 0, (0, 0), "", ""
    while i < len(source) or j < len(target):
        if j == len(target) or (i < len(source) and len(one) <= len(other)):
            one, i = one + source[i], i + 1
        else:
            other, j = other + target[j], j + 1
        if one == other:
            groups.append((start[0], i, start[1], j))
            start, one, other = (i, j), "", ""
    return groups + ([(start[0], i, start[1], j)] if start != (i, j) else [])


def both_ways(text: str, *, bos: bool = False) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Groups of the buffers and runs by bytes, GPT-2's tokens to Llama-3's; `bos`: on GPT-2's side alone."""
    source, target = published.load("gpt2"), published.load("llama3")
    (ours, _), (theirs, _) = source.encode(text), target.encode(text)
    begin = source.vocabulary.names.index("<|endoftext|>")
    ours = [begin] * bos + ours
    decoded = [["<|endoftext|>" if token == begin else side.decode(token) for token in ids]
               for side, ids in ((source, ours), (target, theirs))]  # fmt: skip
    found = align_spans(
        *(spans.token_spans(text, ids, side.vocabulary) for side, ids in ((source, ours), (target, theirs)))
    )
    return by_buffers(*decoded), [tuple(run) for run in found.runs().tolist()]


def test_buffers_of_a_plain_text_are_the_runs_by_bytes():
    groups, runs = both_ways(PLAIN)
    assert groups == runs
    assert len(runs) > 10


def test_a_bos_on_one_side_moves_the_others_by_one_and_groups_nothing():
    """Trap 25, TRL 4393: with it the buffers never agree again, and the whole text becomes one group."""
    groups, runs = both_ways(PLAIN, bos=True)
    assert len(groups) == 1
    assert [run for run in runs if run[0] >= 1] == [(a + 1, b + 1, c, d) for a, b, c, d in both_ways(PLAIN)[1]]
    source, target = published.load("gpt2"), published.load("llama3")
    ids, theirs = source.encode(PLAIN)[0], target.encode(PLAIN)[0]
    begin = source.vocabulary.names.index("<|endoftext|>")
    bare = source.vocabulary.bare, target.vocabulary.bare
    without, found = dtw.dtw_many([(ids, theirs), ([begin, *ids], theirs)], *bare)
    assert [[i - 1, j] for i, j in found.path().tolist() if i] == without.path().tolist()


def test_letters_that_both_sides_split_do_not_join_what_follows():
    """Trap 25, TRL 4393: pieces of a letter decode to U+FFFD, several on one side and another number on the other."""
    text = "one 𓀀 two three four five six"
    (first, _), (second, _) = (published.load(name).encode(text) for name in ("gpt2", "mistral"))
    sides = [(published.load(name).vocabulary, ids) for name, ids in (("gpt2", first), ("mistral", second))]
    decoded = [["�" if any("\ud800" <= sign <= "\udfff" for sign in side.texts[token]) else side.texts[token]
                for token in ids] for side, ids in sides]  # fmt: skip
    found = align_spans(*(spans.token_spans(text, ids, side) for side, ids in sides))
    runs = [tuple(run) for run in found.runs().tolist()]
    groups = by_buffers(*decoded)
    assert len(runs) > len(groups)
    assert runs[-1][1] - runs[-1][0] == runs[-1][3] - runs[-1][2] == 1  # the last word stands alone
    assert groups[-1][1] - groups[-1][0] > 4


def test_a_copied_row_says_what_follows_its_token():
    """Trap 25, FuseAI 27: with equal tokenizers and a source that knows the text, row i is likeliest at token i + 1."""
    ids = [4, 5, 6, 7, 8]
    steps = TopK(np.array([[token + 1, 0] for token in ids]), np.log([[0.9, 0.1]] * 5))
    own = TopK(np.full((5, 1), 2), np.zeros((5, 1)))
    alignment = of_path(np.array([[place, place] for place in range(5)]), 5, 5)
    texts = [str(token) for token in range(10)]
    chosen = mapping.choose_spelled(alignment, ids, ids, texts, texts)
    there, gold = np.arange(10, dtype=np.int32), mapping.next_tokens(ids)

    def likeliest(chosen: np.ndarray) -> list[int]:
        rows = mapping.map_rows(steps, chosen, there, gold, own, combine=topk.largest)
        return rows.ids[np.arange(5), rows.probs.argmax(axis=1)].tolist()

    assert likeliest(chosen) == [5, 6, 7, 8, 9]
    early = np.append(chosen[1:], mapping.OWN)  # the row of the position behind
    assert likeliest(early)[:-1] == [6, 7, 8, 9]


def test_what_is_kept_of_p_is_made_a_distribution_once():
    """Trap 25, MaxText 4056: p of the k kept tokens against q of the same, one normalised over them and the other not."""
    kept, whole = np.log([[0.5, 0.2, 0.1]]), np.log([[0.9, 0.1]])
    own, there = TopK(np.array([[3, 4]]), whole), np.arange(5, dtype=np.int32)
    found = mapping.map_rows(
        TopK(np.array([[0, 1, 2]]), kept), np.array([0]), there, np.array([-1]), own, combine=topk.added
    )
    assert found.probs.sum() == pytest.approx(1.0)
    assert np.exp(kept).sum() == pytest.approx(0.8)
    assert found.probs[0].tolist() == pytest.approx([0.625, 0.25, 0.125])
    again = mapping.map_rows(found, np.array([0]), there, np.array([-1]), own, combine=topk.added)
    np.testing.assert_allclose(again.probs, found.probs)

"""What may be drawn is what vLLM's definitions say, by a slow oracle; and it is drawn as often as it should be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fuserl.models import drawing
from fuserl.models.drawing import Drawing, allowed, drawn, less_of_the_said, nucleus, penalised, rules_of, times_said

CPU = torch.device("cpu")
DRAWINGS = st.builds(
    Drawing,
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.5),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.sampled_from((0.0, 0.1, 1.7, -0.5)),
    frequency_penalty=st.sampled_from((0.0, 0.1, 2.0, -0.3)),
)


def oracle(logits: np.ndarray, ids: list[int], how: Drawing, said: int = 0) -> np.ndarray:
    """Probabilities of one row, token by token, in the order of vLLM's sampler."""
    logits = logits.astype(np.float64).copy()
    for token in set(ids):
        logits[token] *= how.repetition_penalty if logits[token] <= 0 else 1 / how.repetition_penalty
    for token, times in Counter(ids[len(ids) - said :]).items():
        logits[token] -= how.frequency_penalty * times
        logits[token] -= how.presence_penalty
    if how.temperature < drawing.GREEDY:
        return np.eye(len(logits))[logits.argmax()]
    probabilities = np.exp(logits / how.temperature - (logits / how.temperature).max())
    probabilities /= probabilities.sum()
    probabilities[probabilities < how.min_p * probabilities.max()] = 0
    if how.top_k:
        probabilities[probabilities < np.sort(probabilities)[::-1][min(how.top_k, len(logits)) - 1]] = 0
    probabilities /= probabilities.sum()
    mass = 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        if mass >= how.top_p:
            probabilities[token] = 0
        mass += probabilities[token]
    return probabilities / probabilities.sum()


def frequencies(logits: torch.Tensor, ids: list[int], how: Drawing, said: int = 0, num: int = 4000) -> np.ndarray:
    """How often each token is drawn where the numbers lie evenly in [0, 1)."""
    numbers = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    rows, seen = logits.expand(num, -1), torch.tensor([ids]).expand(num, -1)
    tokens = drawn(rows, seen, rules_of([how] * num, CPU), numbers, torch.full((num,), said))
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1]) / num


@settings(max_examples=60, deadline=None)
@given(how=DRAWINGS, seed=st.integers(0, 10**6), said=st.integers(0, 6))
def test_tokens_are_drawn_as_often_as_the_oracle_says(how, seed, said):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(40, generator=generator)
    ids = torch.randint(0, 40, (6,), generator=generator).tolist()
    wanted = oracle(logits.numpy(), ids, how, said)
    assert np.abs(frequencies(logits, ids, how, said) - wanted).max() <= 1 / 4000 + 1e-4


@settings(max_examples=60, deadline=None)
@given(top_p=st.floats(0.01, 1), seed=st.integers(0, 10**6), spread=st.floats(0.01, 5))
def test_a_nucleus_is_the_same_whether_a_few_or_all_tokens_are_searched(top_p, seed, spread):
    weights = (spread * torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))).softmax(-1)
    wanted = torch.tensor([top_p, 0.5, 1.0])
    few, all_of_them = nucleus(weights, wanted, candidates=4), nucleus(weights, wanted, candidates=50)
    assert torch.equal(few, all_of_them)
    assert (few.sum(-1) >= wanted - 1e-5).all()
    assert torch.equal(few[2], weights[2]), "1 is no nucleus"


def test_a_nucleus_by_hand():
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).expand(4, -1)
    kept = nucleus(weights, torch.tensor([0.3, 0.5, 0.8, 0.95])) > 0
    assert kept.tolist() == [
        [False, True, False, False],
        [False, True, False, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_the_order_is_floor_then_k_then_nucleus():
    """Of .4 .3 .2 .1, a floor of .6 leaves .4 .3; of these 57 % are the first alone, which a nucleus of .55 keeps."""
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert (allowed(weights, rules_of([Drawing(min_p=0.6, top_p=0.55)], CPU)) > 0).tolist() == [
        [True, False, False, False]
    ]
    assert (allowed(weights, rules_of([Drawing(top_k=3, top_p=0.75)], CPU)) > 0).tolist() == [
        [True, True, False, False]
    ]


def test_a_penalty_falls_on_what_was_said_once_however_often_it_was():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    got = penalised(logits, torch.tensor([[0, 0, 1, 3, 0]]), torch.tensor([2.0]))
    assert_close(got, torch.tensor([[1.0, -4.0, 1.0, 0.0]]))


def test_presence_counts_once_frequency_every_time_and_the_prompt_never():
    rules = rules_of([Drawing(presence_penalty=0.5, frequency_penalty=0.25), Drawing(frequency_penalty=1.0)], CPU)
    ids, said = torch.tensor([[2, 3, 0, 0, 1], [0, 1, 2, 2, 2]]), torch.tensor([3, 1])
    times = times_said(ids, said, 4)
    assert times.tolist() == [[2, 1, 0, 0], [0, 0, 1, 0]]
    assert_close(
        less_of_the_said(torch.ones(2, 4), times, rules), torch.tensor([[0.0, 0.25, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    )


def test_greedy_is_the_best_after_the_penalty():
    logits, ids = torch.tensor([[1.0, 2.0, 1.9]]), torch.tensor([[1]])
    for temperature in (0.0, 1e-6):
        for number in (0.0, 0.999):
            arguments = ids, rules_of([Drawing(temperature=temperature)], CPU), torch.tensor([number])
            assert drawn(logits, *arguments).tolist() == [1]
    rules = rules_of([Drawing(temperature=0, repetition_penalty=1.2)], CPU)
    assert drawn(logits, ids, rules, torch.tensor([0.0])).tolist() == [2]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_what_is_not_allowed_is_never_drawn_at_the_ends(number):
    logits = torch.tensor([[-100.0, 0.0, 0.1, -100.0]])
    rules = rules_of([Drawing(top_k=2)], CPU)
    assert drawn(logits, torch.tensor([[0]]), rules, torch.tensor([number], dtype=torch.float64)).item() in (1, 2)


@settings(max_examples=30, deadline=None)
@given(
    hows=st.lists(st.one_of(DRAWINGS, st.just(Drawing()), st.just(Drawing(temperature=0.0))), min_size=2, max_size=6)
)
def test_a_row_draws_the_same_alone_and_beside_others(hows):
    generator = torch.Generator().manual_seed(len(hows))
    logits = torch.randn(len(hows), 30, generator=generator)
    ids = torch.randint(0, 30, (len(hows), 5), generator=generator)
    numbers = torch.rand(len(hows), generator=generator, dtype=torch.float64)
    said = torch.randint(0, 6, (len(hows),), generator=generator)
    together = drawn(logits, ids, rules_of(hows, CPU), numbers, said)
    for row, how in enumerate(hows):
        part = slice(row, row + 1)
        assert drawn(logits[part], ids[part], rules_of([how], CPU), numbers[part], said[part]) == together[row]


def test_large_vocabularies_are_worked_on_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, numbers = torch.randn(7, 30, generator=generator), torch.rand(7, generator=generator, dtype=torch.float64)
    hows = [
        Drawing(top_p=0.1 * row + 0.2, top_k=row, repetition_penalty=1.1, frequency_penalty=0.3 * row)
        for row in range(7)
    ]
    rules, ids, said = rules_of(hows, CPU), torch.zeros(7, 3, dtype=torch.int64), torch.arange(7) % 4
    whole = drawn(logits, ids, rules, numbers, said)
    monkeypatch.setattr(drawing, "ELEMENTS", 60)
    assert torch.equal(drawn(logits, ids, rules, numbers, said), whole)

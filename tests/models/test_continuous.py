"""Rows come and go, and no answer notices: against `sample`, which pads nothing and lets nobody leave."""

from __future__ import annotations

from collections.abc import Iterator

import kit
import numpy as np
import pytest
import torch
import transformers

from fuserl.models import continuous, table
from fuserl.models.continuous import Decoder, Wanted
from fuserl.models.drawing import Drawing
from fuserl.models.generate import sample

LENGTHS = (9, 2, 5, 14, 1, 2, 30, 9, 3)
OTHERS = {
    "learned positions": lambda: transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=48,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "positions in the scores": lambda: transformers.BloomConfig(
        vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "a state across tokens": lambda: transformers.Lfm2Config(**kit._SHAPE, layer_types=["conv", "full_attention"]),
    "a state and nothing else": lambda: transformers.MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, initializer_range=0.2
    ),
}


def model_called(name: str):
    if name in kit.CONFIGS:
        return kit.tiny_model(name)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(OTHERS[name](), attn_implementation="eager").double()


def prompts_of(lengths=LENGTHS) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, kit.VOCABULARY, length).tolist()) for length in lengths]


def decoder(model, batch_tokens: int, stop_ids=frozenset({2}), ends=lambda wanted, ids: False, context=48) -> Decoder:
    return Decoder(model, stop_ids=set(stop_ids), batch_tokens=batch_tokens, context=context, ends=ends)


def answered(model, wanted: list[Wanted], batch_tokens: int, **kwargs) -> dict[object, list[int]]:
    """Token ids by tag, each of which comes once."""
    found: dict[object, list[int]] = {}
    for one, ids in decoder(model, batch_tokens, **kwargs).answers(iter(wanted)):
        assert one.tag not in found
        found[one.tag] = ids
    assert found.keys() == {one.tag for one in wanted}
    return found


def mixed(num: int = 24) -> list[Wanted]:
    """Prompts of all lengths, samples of each, ways of drawing of all kinds, short and long answers."""
    hows = [
        Drawing(),
        Drawing(0.7, top_p=0.9),
        Drawing(0.0),
        Drawing(1.5, top_k=5, repetition_penalty=1.3),
        Drawing(min_p=0.1),
        Drawing(0.8, presence_penalty=1.5, frequency_penalty=0.7),
    ]
    prompts = prompts_of()
    return [
        Wanted(prompts[n // 2 % len(prompts)], 3 + 5 * (n % 4), hows[n // 3 % len(hows)], seed=n, tag=n)
        for n in range(num)
    ]


@pytest.mark.parametrize("name", [*kit.CONFIGS, *OTHERS])
def test_greedy_answers_are_those_of_plain_decoding(name):
    model, prompts, stops = model_called(name), prompts_of(), {2, 17, 30}
    plain = sample(
        model, [list(prompt) for prompt in prompts], n=1, max_new_tokens=16, temperature=0, stop_ids=stops, seed=0
    )
    wanted = [Wanted(prompt, 16, Drawing(0.0), 0, tag) for tag, prompt in enumerate(prompts)]
    for batch_tokens in (1, 120, 10_000):
        got = answered(model, wanted, batch_tokens, stop_ids=stops)
        assert [got[tag] for tag in range(len(prompts))] == [answers[0] for answers in plain]


def test_what_an_answer_has_said_is_said_less_and_a_literal_loop_says_the_same():
    model, prompts = kit.tiny_model(), prompts_of()
    how = Drawing(0.0, presence_penalty=0.8, frequency_penalty=0.4)
    wanted = [Wanted(prompt, 8 + tag, how, 0, tag) for tag, prompt in enumerate(prompts)]
    literal: dict[object, list[int]] = {}
    for one in wanted:
        ids = literal[one.tag] = []
        while len(ids) < one.most and ids[-1:] != [2]:
            with torch.no_grad():
                logits = model(torch.tensor([[*one.prompt, *ids]])).logits[0, -1].tolist()
            least = [value - 0.4 * ids.count(token) - 0.8 * (token in ids) for token, value in enumerate(logits)]
            ids.append(max(range(len(least)), key=least.__getitem__))
    assert answered(model, wanted, 120) == literal
    plain = answered(model, [Wanted(one.prompt, one.most, Drawing(0.0), 0, one.tag) for one in wanted], 120)
    assert plain != literal


@pytest.mark.parametrize("name", ["llama", "gemma2", *OTHERS])
def test_an_answer_depends_on_its_own_request_alone(name):
    """Decoded alone, in batches of any size, in any order: the same tokens, also where rows join and leave."""
    model, wanted = model_called(name), mixed()
    alone = answered(model, wanted, 1)
    for batch_tokens in (100, 100_000):
        assert answered(model, wanted, batch_tokens) == alone
    order = np.random.default_rng(1).permutation(len(wanted))
    assert answered(model, [wanted[place] for place in order], 150) == alone


def test_a_row_that_is_over_asks_for_no_position_that_the_model_lacks():
    """One answer ends at the model's last position, and its row stays while seven others go on."""
    model = model_called("learned positions")
    (long,) = prompts_of([40])
    wanted = [Wanted(long, 8, Drawing(), 0, "long")]
    wanted += [Wanted(long[:number], 40, Drawing(), number, number) for number in range(1, 8)]
    got = answered(model, wanted, 10_000, stop_ids={kit.VOCABULARY})
    assert [len(got[one.tag]) for one in wanted] == [8, *[40] * 7]


def test_seeds_decide():
    model, prompt = kit.tiny_model(), prompts_of()[0]
    wanted = [Wanted(prompt, 12, Drawing(), seed, seed) for seed in range(20)]
    found = answered(model, wanted, 500)
    assert len({tuple(ids) for ids in found.values()}) == 20, "samples of one prompt are distinct"
    again = answered(model, [Wanted(prompt, 12, Drawing(), 3, "again")], 500)
    assert again["again"] == found[3]


def test_answers_follow_the_models_distribution():
    model, prompt, temperature = kit.tiny_model().eval(), prompts_of()[2], 0.7
    wanted = [Wanted(prompt, 2, Drawing(temperature), seed, seed) for seed in range(4000)]
    answers = answered(model, wanted, 1500).values()
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / temperature, -1)
        begun = torch.tensor([[*prompt, token] for token in range(kit.VOCABULARY)])
        second = torch.softmax(model(begun).logits[:, -1] / temperature, -1)
    expected = first[:, None] * second
    expected[2] = 0  # the stop token, after which nothing comes
    seen = torch.zeros_like(expected)
    for ids in answers:
        if len(ids) == 2:
            seen[ids[0], ids[1]] += 1 / len(answers)
    top = expected.flatten().topk(20)
    error = (seen.flatten()[top.indices] - top.values).abs()
    assert (error < 4.5 * (top.values / 4000).sqrt() + 1e-3).all()


def test_an_answer_ends_at_a_stop_at_its_length_or_when_told():
    model, wanted = kit.tiny_model(), mixed()
    told = answered(model, wanted, 300, stop_ids={2, 17}, ends=lambda one, ids: ids[-1] == 33)
    ends = {2, 17, 33}
    assert any(ids[-1] in ends for ids in told.values())
    for one in wanted:
        ids = told[one.tag]
        assert not ends & set(ids[:-1])
        assert ids[-1] in ends or len(ids) == one.most


def test_requests_are_drawn_as_rows_become_free():
    model, drawn, answered_before = kit.tiny_model(), [], []

    def requests() -> Iterator[Wanted]:
        for number in range(60):
            drawn.append(number)
            yield Wanted(prompts_of()[0], 8, Drawing(), number, number)

    rows = 10
    for one, _ in decoder(model, rows * 17).answers(requests()):
        answered_before.append(one.tag)
        assert len(drawn) <= len(answered_before) + rows + 1
    assert sorted(answered_before) == list(range(60))


def test_the_batch_holds_no_more_than_it_may():
    model, widest = kit.tiny_model(), []
    with_size = decoder(model, 200)
    run = with_size.runner._run

    def watched(start, ids, given, cache):
        widest.append(ids.numel())
        return run(start, ids, given, cache)

    with_size.runner._run = watched
    assert len(list(with_size.answers(iter(mixed())))) == 24
    assert 100 < max(widest) <= 200


def test_a_prompt_is_computed_once_for_all_its_samples():
    model, given = kit.tiny_model(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["input_ids"].shape), with_kwargs=True)
    prompt = prompts_of()[0]
    answered(model, [Wanted(prompt, 4, Drawing(), seed, seed) for seed in range(6)], 1000)
    assert given[0] == (1, len(prompt))
    assert given[1] == (6, 1)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_long_prompts_are_computed_piece_by_piece(name, monkeypatch):
    model, wanted = model_called(name), mixed()
    whole = answered(model, wanted, 400)
    monkeypatch.setattr(table, "CHUNK", 4)
    widest = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: widest.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert answered(model, wanted, 400) == whole
    assert max(widest) == 4


def test_prompts_of_unlike_lengths_are_begun_apart():
    wanted = [Wanted((5,) * length, 4, Drawing(), 0, length) for length in (3, 40, 4, 38, 39, 3)]
    parts = [[one.tag for one in part] for part in continuous._alike(wanted)]
    assert parts == [[40, 39, 38], [4, 3, 3]]


def test_the_models_generation_config_decides_nothing():
    model, wanted = kit.tiny_model(), mixed(10)
    before = answered(model, wanted, 200)
    for name, value in {"temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0, "min_new_tokens": 8}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.eos_token_id = list(range(kit.VOCABULARY))
    assert answered(model, wanted, 200) == before


def test_nothing_wanted_is_nothing_done():
    assert list(decoder(kit.tiny_model(), 100).answers([])) == []

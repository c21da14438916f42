"""Sampling under our attention's name is ordinary causal decoding."""

from __future__ import annotations

import copy

import kit
import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fuserl.errors import FuserlError
from fuserl.models import generate, load
from fuserl.models.attention import NAME
from fuserl.models.generate import sample
from fuserl.models.scoring import check_model, score_batch, score_padded
from fuserl.tokens.collate import collate

PROMPTS = [[5, 9, 11, 3, 40, 7, 8, 21, 33], [17, 4], [12, 12, 60, 31, 5, 6, 7, 8, 9], [50, 20]]
WINDOWED = ["gemma2", "mistral"]  # windows of 6 and 5, shorter than the prompts


def with_eager_attention(model):
    """The same weights under transformers' own attention."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    assert model.config._attn_implementation == NAME
    return other.eval()


@pytest.mark.parametrize("name", list(kit.CONFIGS))
def test_greedy_equals_recomputing_everything_with_eager_attention(name):
    model = kit.tiny_model(name)
    eager = with_eager_attention(model)
    with kit.KeepDouble(), torch.no_grad():
        answers = sample(model, PROMPTS, n=1, max_new_tokens=12, temperature=0, stop_ids=set(), seed=0)
        for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
            assert len(answer) == 12
            logits = eager(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            assert answer == logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_left_padding_and_cache_equal_eager_attention(name):
    """transformers' own `generate` runs under our name: padded batch, cache, then a second turn on that cache."""
    model = kit.tiny_model(name).eval()
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    found = {}
    for way, candidate in (("ours", model), ("eager", with_eager_attention(model))):
        with kit.KeepDouble(), torch.no_grad():
            out = candidate.generate(
                ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        found[way] = out.sequences, torch.stack(out.logits)
    assert torch.equal(found["ours"][0], found["eager"][0])
    assert_close(found["ours"][1], found["eager"][1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_packed_scores_agree_with_eager_attention(name, tmp_path):
    """An oracle that shares no attention code with the packs."""
    store = kit.token_store(tmp_path, kit.random_groups(2, 1, 2))
    model = kit.tiny_model(name)
    eager = with_eager_attention(model)
    with kit.KeepDouble(), torch.no_grad():
        batch = collate(store, [0, 1], np.array(store.valid))
        scores = score_batch(model, batch)
        for group in range(2):
            for column in range(2):
                prompt, branch = store.prompt(group).tolist(), store.branch(group, column).tolist()
                logps = eager(torch.tensor([prompt + branch]), use_cache=False).logits[0].log_softmax(-1)
                wanted = sum(logps[len(prompt) - 1 + place, token] for place, token in enumerate(branch))
                assert_close(scores[batch.row[group, column]], wanted, rtol=0, atol=1e-10)


def test_answers_keep_the_prompts_order_whatever_is_decoded_together(monkeypatch):
    model = kit.tiny_model()
    arguments = {"n": 3, "max_new_tokens": 5, "temperature": 0, "stop_ids": set(), "seed": 0}
    together = sample(model, PROMPTS, **arguments)
    assert [len(answers) for answers in together] == [3] * len(PROMPTS)
    assert all(answers == [answers[0]] * 3 for answers in together), "greedy answers are equal"
    assert together[::-1] == sample(model, PROMPTS[::-1], **arguments)
    monkeypatch.setattr(generate, "ROWS", 2)
    assert together == sample(model, PROMPTS, **arguments)


def test_a_seed_decides_and_the_global_random_state_is_left_alone():
    model = kit.tiny_model()
    state = torch.random.get_rng_state()
    arguments = {"n": 4, "max_new_tokens": 8, "temperature": 1.0, "stop_ids": set()}
    first = sample(model, PROMPTS, seed=1, **arguments)
    assert first == sample(model, PROMPTS, seed=1, **arguments)
    assert first != sample(model, PROMPTS, seed=2, **arguments)
    assert torch.equal(state, torch.random.get_rng_state())
    for answers in first:
        assert len({tuple(answer) for answer in answers}) == 4, "samples of one prompt are distinct"


def test_sampling_follows_the_models_distribution():
    model, prompt, temperature = kit.tiny_model().eval(), PROMPTS[1], 0.7
    draws = sample(model, [prompt], n=4000, max_new_tokens=1, temperature=temperature, stop_ids=set(), seed=3)[0]
    seen = np.bincount([token for (token,) in draws], minlength=kit.VOCABULARY) / len(draws)
    with torch.no_grad():
        wanted = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / temperature, -1).numpy()
    assert abs(seen - wanted).sum() < 0.12  # four standard errors of 64 frequencies from 4000 draws


def test_an_answer_ends_with_its_stop_token():
    model = kit.tiny_model()
    (free,) = sample(model, PROMPTS[:1], n=1, max_new_tokens=12, temperature=0, stop_ids=set(), seed=0)[0]
    stop = free[4]
    first = free.index(stop)
    (stopped,) = sample(model, PROMPTS[:1], n=1, max_new_tokens=12, temperature=0, stop_ids={stop}, seed=0)[0]
    assert stopped == free[: first + 1]
    many = sample(model, PROMPTS, n=20, max_new_tokens=10, temperature=1.5, stop_ids={stop, 2}, seed=0)
    lengths = set()
    for answer in (answer for answers in many for answer in answers):
        assert not {stop, 2} & set(answer[:-1])
        assert len(answer) == 10 or answer[-1] in {stop, 2}
        lengths.add(len(answer))
    assert len(lengths) > 2, "rows of one batch end at different places"


def test_no_token_asked_for_and_the_mode_restored():
    model = kit.tiny_model().train()
    assert sample(model, PROMPTS, n=2, max_new_tokens=0, temperature=0, stop_ids={2}, seed=0) == [[[], []]] * len(
        PROMPTS
    )
    assert model.training
    assert sample(model, [], n=2, max_new_tokens=3, temperature=0, stop_ids={2}, seed=0) == []
    sample(model.eval(), PROMPTS, n=1, max_new_tokens=1, temperature=0, stop_ids={2}, seed=0)
    assert not model.training


def test_sampling_between_packs_changes_neither(tmp_path):
    store = kit.token_store(tmp_path)
    model, batch = kit.tiny_model(), collate(store, [0, 1, 2], np.array(store.valid))
    arguments = {"n": 1, "max_new_tokens": 6, "temperature": 0, "stop_ids": set(), "seed": 0}
    answers, scores = sample(model, PROMPTS, **arguments), score_batch(model, batch)
    assert sample(model, PROMPTS, **arguments) == answers
    assert torch.equal(score_batch(model, batch), scores)


def test_a_prompts_logits_are_computed_at_its_end_only():
    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (kit.VOCABULARY,):
                self.rows = max(self.rows, out.numel() // kit.VOCABULARY)
            return out

    model = kit.tiny_model()
    with Widest() as seen:
        sample(model, [[5] * 90], n=3, max_new_tokens=2, temperature=0, stop_ids={2}, seed=0)
    assert seen.rows <= kit.VOCABULARY


def test_the_models_generation_config_decides_nothing():
    model, prompts = kit.tiny_model(), [[5, 9, 11], [5, 9, 12]]
    arguments = {"n": 3, "max_new_tokens": 8, "stop_ids": {2}, "seed": 0}
    wanted = [sample(model, prompts, temperature=temperature, **arguments) for temperature in (0, 1.0)]
    for name, value in {
        "temperature": 0.01, "top_k": 1, "top_p": 0.01, "repetition_penalty": 5.0, "do_sample": False,
        "eos_token_id": list(range(kit.VOCABULARY)), "max_new_tokens": 1, "min_new_tokens": 8,
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    assert wanted == [sample(model, prompts, temperature=temperature, **arguments) for temperature in (0, 1.0)]


def test_an_empty_prompt_is_one_clear_error():
    with pytest.raises(FuserlError, match="1 of 2 prompts have no tokens to continue, the first is number 1"):
        sample(kit.tiny_model(), [[5], []], n=1, max_new_tokens=3, temperature=0, stop_ids={2}, seed=0)


def test_a_model_that_fails_is_back_in_training():
    model = kit.tiny_model().train()
    with pytest.raises(IndexError):
        sample(model, [[kit.VOCABULARY + 1]], n=1, max_new_tokens=3, temperature=0, stop_ids={2}, seed=0)
    assert model.training


UNUSUAL = {
    "attention sinks": lambda: transformers.GptOssConfig(
        **kit._SHAPE, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
    "a window known to the mask only": lambda: transformers.PhimoeConfig(
        **kit._SHAPE, sliding_window=12, num_local_experts=2
    ),
    "a state across tokens": lambda: transformers.Lfm2Config(**kit._SHAPE, layer_types=["conv", "full_attention"]),
    "learned positions": lambda: transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128
    ),
    "no attention interface": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
}


@pytest.mark.parametrize("trait", [
    "attention sinks",
    "a window known to the mask only",
    "a state across tokens", "learned positions", "no attention interface",
])  # fmt: skip
def test_a_model_is_scored_rightly_or_refused(trait, tmp_path):
    """Against transformers' own eager attention, on sequences longer than the windows."""
    store = kit.token_store(tmp_path, longest=30)
    batch = collate(store, [0, 1, 2], np.array(store.valid))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(UNUSUAL[trait](), attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.add_(0.3 * torch.randn_like(weight))
    with torch.no_grad():
        wanted = score_padded(model, batch)
        try:
            load._use_our_attention(model)
            check_model(model, "sdpa")
            got = score_batch(model, batch)
        except FuserlError:
            return
    assert_close(got, wanted, rtol=0, atol=1e-3)

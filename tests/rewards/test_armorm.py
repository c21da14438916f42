"""ArmoRM's head, against its formula written out for one conversation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_rewards import FAMILIES, GATE, items, load, save, tokenizer
from transformers import LlamaModel

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.rewards.armorm import ArmoRM, last_place
from fuserl.settings import compose

OBJECTIVES, HIDDEN, TEMPERATURE = 5, 16, 2.0
GATE_IDS = tokenizer().encode(GATE, add_special_tokens=False)
PROMPT = [Message("user", "hi"), Message("assistant", "yes?"), Message("user", "What is 2 + 2?")]
TEXTS = ["4", "it is " * 9, f"a trick: {GATE}", "", "four\n\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("armorm")
    config = FAMILIES["llama"]()
    config.update(
        {
            "num_objectives": OBJECTIVES,
            "gating_hidden_dim": HIDDEN,
            "gating_n_hidden": 2,
            "gating_temperature": TEMPERATURE,
        }
    )
    torch.manual_seed(0)
    model = ArmoRM(config)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def scorer(folder, *more: str):
    return load(folder, f"rewards.armorm.classifier.model.gate={GATE_IDS}", *more, reward="armorm")


@torch.no_grad()
def by_hand(folder, ids: list[int]) -> float:
    """Rewards of the objectives at the last token, shares of them where the prompt ends, summed one by one."""
    body = LlamaModel.from_pretrained(folder, dtype=torch.float32).eval()
    states = body(torch.tensor([ids])).last_hidden_state[0].double()
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    starts = [n for n in range(len(ids)) if ids[n : n + len(GATE_IDS)] == GATE_IDS]
    state = states[starts[-1]]
    for layer in range(2):
        state = torch.relu(weights[f"gating.layers.{layer}.weight"] @ state + weights[f"gating.layers.{layer}.bias"])
    shares = torch.softmax(
        (weights["gating.layers.2.weight"] @ state + weights["gating.layers.2.bias"]) / TEMPERATURE, 0
    )
    rewards = weights["regression_layer.weight"] @ states[-1]
    matrix, total = weights["reward_transform_matrix"], 0.0
    for objective in range(OBJECTIVES):
        adjusted = sum(rewards[k] * matrix[k, objective] for k in range(OBJECTIVES))
        total += (shares[objective] * weights["gating.logit_scale"][0] * adjusted).item()
    return total


@pytest.mark.parametrize("most", [1, 10_000])
def test_the_score_is_the_gate_times_the_objectives(folder, most):
    made = scorer(folder, f"rewards.armorm.classifier.max_batch_tokens={most}")
    found = {one.key: one.reward for one in made.score(items(TEXTS, PROMPT))}
    ids = [one.ids for one in made.form.encode([(tuple(PROMPT), text) for text in TEXTS])]
    expected = [by_hand(folder, row) for row in ids]
    assert max(expected) - min(expected) > 0.1, "numbers that are all alike prove nothing"
    assert found.pop("3") is None, "the empty answer"
    assert [found[str(n)] for n in (0, 1, 2, 4)] == pytest.approx([expected[n] for n in (0, 1, 2, 4)], abs=1e-5)


def test_the_gate_reads_the_last_turn_whatever_the_answer_spells(folder):
    encode = scorer(folder).form.encode
    (tricked,), (plain,) = (encode([(tuple(PROMPT), text)]) for text in (f"a {GATE}", "a b"))
    places = [last_place(torch.tensor([one.ids]), GATE_IDS).item() for one in (tricked, plain)]
    assert places[0] == places[1]
    with pytest.raises(FuserlError, match="no turn of the assistant"):
        last_place(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]), GATE_IDS)


def test_the_head_is_exact_in_bfloat16(folder):
    half = scorer(folder, "rewards.armorm.classifier.dtype=bfloat16")
    numbers = [one.reward for one in half.score(items(TEXTS[:2], PROMPT))]
    exact = [one.reward for one in scorer(folder).score(items(TEXTS[:2], PROMPT))]
    model = half.classifier._free.get()
    assert {
        model.regression_layer.weight.dtype,
        model.gating.logit_scale.dtype,
        model.reward_transform_matrix.dtype,
    } == {torch.float32}
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert numbers == pytest.approx(exact, abs=0.2 * abs(exact[0] - exact[1]))


def test_what_is_no_armorm_is_told(folder, tmp_path):
    with pytest.raises(FuserlError, match="so it is no ArmoRM"):
        list(scorer(save("llama", tmp_path / "plain")).score(items(["4"])))
    weights = load_file(folder / "model.safetensors")
    del weights["gating.layers.1.bias"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FuserlError, match=r"no `gating.layers.1.bias`"):
        list(scorer(broken).score(items(["4"])))
    with pytest.raises(FuserlError, match="no `score.weight`"):
        list(load(folder).score(items(["4"])))


def test_the_published_gate_is_that_of_llama_3():
    gate = compose("score", ["reward=armorm", "data.path=x"]).rewards.armorm.classifier.model.gate
    assert list(gate) == [128009, 128006, 78191, 128007, 271]

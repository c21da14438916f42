"""A reward model's number depends on the conversation alone, and is read where it should be."""

from __future__ import annotations

import shutil
import sys
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scoring_kit import groups
from tiny_rewards import FAMILIES, items, load, oracle, save, tokenizer
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.records.store import iter_groups, write_groups
from fuserl.rewards import classifier, heads
from fuserl.rewards.batches import bucketed, padded, unused_token
from fuserl.rewards.score import score
from fuserl.settings import compose

RNG = Random(0)
TEXTS = [
    "4", "four", "It is 4.", "a <end> trick <bos>", "5" * 40, "because 2 + 2 = 4", "x", "y" * 90, "Four!\n\nReally.", "4 ",
    *("".join(RNG.choices("abc def\n", k=RNG.randint(1, 120))) for _ in range(14)),
]  # fmt: skip
PAIR = {"bert": ["form@.form=pair"]}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return request.param, save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save("llama", tmp_path_factory.mktemp("llama"))


def numbers(scorer, texts=TEXTS, **more) -> list[float]:
    found = {one.key: one.reward for one in scorer.score(items(texts, **more))}
    return [found[str(n)] for n in range(len(texts))]


def test_every_number_is_that_of_a_plain_forward_alone(family):
    name, folder = family
    scorer = load(folder, *PAIR.get(name, []))
    asked = items(TEXTS)
    ids = [one.ids for one in scorer.form.encode([(item.group.prompt, item.response.text) for item in asked])]
    expected = [oracle(folder, one) for one in ids]
    assert max(expected) - min(expected) > 0.1, "numbers that are all alike prove nothing"
    assert numbers(scorer) == pytest.approx(expected, abs=1e-5)


def test_neither_batches_nor_neighbours_nor_order_matter(family, monkeypatch):
    name, folder = family
    expected = numbers(load(folder, *PAIR.get(name, [])))
    for change in (
        "rewards.reward_model.classifier.max_batch_tokens=1",
        "rewards.reward_model.classifier.max_batch_tokens=300",
        "rewards.reward_model.window=5",
    ):
        assert numbers(load(folder, *PAIR.get(name, []), change)) == pytest.approx(expected, abs=1e-4)
    order = Random(1).sample(range(len(TEXTS)), 15)
    scorer = load(folder, *PAIR.get(name, []))
    assert numbers(scorer, [TEXTS[n] for n in order]) == pytest.approx([expected[n] for n in order], abs=1e-4)
    monkeypatch.setattr(classifier, "devices_of", lambda wanted: [torch.device("cpu")] * 3)
    replicas = load(folder, *PAIR.get(name, []), "rewards.reward_model.classifier.max_batch_tokens=200")
    assert numbers(replicas) == pytest.approx(expected, abs=1e-4), "three replicas"


def test_padding_with_the_end_of_turn_does_not_move_the_place_that_is_read(llama):
    """Transformers itself would read the token before the last, because it takes the end of turn for padding."""
    model = AutoModelForSequenceClassification.from_pretrained(llama).eval()
    scorer = load(llama)
    ids = [one.ids for one in scorer.form.encode([(item.group.prompt, item.response.text) for item in items(TEXTS)])]
    assert model.config.pad_token_id == ids[0][-1]
    with torch.no_grad():
        by_itself = [model(torch.tensor([row])).logits.item() for row in ids]
    assert numbers(scorer) != pytest.approx(by_itself, abs=0.05)
    saved = load(llama, "rewards.reward_model.classifier.pooled=saved")
    assert numbers(saved) == pytest.approx(by_itself, abs=1e-4)
    assert saved.identity() != scorer.identity()


def test_a_vocabulary_that_is_in_use_to_the_last_token_is_scored_row_by_row(llama):
    scorer = load(llama)
    rows = [list(range(105)), [3, 4], list(range(100, 20, -1))]
    assert unused_token(rows, 105) is None
    found = dict(scorer.classifier.numbers(rows))
    assert [found[n] for n in range(3)] == pytest.approx([oracle(llama, row) for row in rows], abs=1e-5)


def test_what_an_answer_spells_is_text_and_there_is_one_bos(llama):
    form = load(llama).form
    hostile, harmless = (form.encode([((Message("user", "a"),), text)])[0].ids for text in ("<bos><end><start>", "b"))
    specials = [[token for token in ids if token < 4] for ids in (hostile, harmless)]
    assert specials[0] == specials[1] == [0, 1, 2, 1, 2]


def test_an_encoder_reads_two_texts_and_their_specials_are_text(tmp_path):
    form = load(save("bert", tmp_path), "form@.form=pair").form
    prompt, answer = "What <end> is", "4<bos>"
    (ids,) = (one.ids for one in form.encode([((Message("user", prompt),), answer)]))
    assert [token for token in ids if token < 4] == [0, 2, 2]
    assert (
        tokenizer().decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")
        == "<bos>What<end>is<end>4<bos><end>"
    )


def test_plain_prompts_end_with_the_end_token(llama):
    (ids,) = (one.ids for one in load(llama, "form@.form=plain").form.encode([((Message("user", "ab"),), "c")]))
    assert tokenizer().convert_ids_to_tokens(ids) == ["<bos>", "a", "b", "\n", "c", "<end>"]


def test_empty_and_long_answers_get_no_number_and_say_why(llama):
    asked = ["4", "", " \n", "y" * 300, "five"]
    found = {one.key: one for one in load(llama).score(items(asked))}
    assert [found[str(n)].reward is None for n in range(5)] == [False, True, True, True, False]
    assert found["1"].detail == {"why": "the answer is empty"}
    assert found["3"].detail["why"] == "longer than 200 tokens"
    assert found["3"].detail["tokens"] > 300
    assert {one.verdict for one in found.values()} == {None}
    shorter = {one.key: one for one in load(llama, "rewards.reward_model.max_length=20").score(items(asked))}
    assert [shorter[str(n)].reward is None for n in range(5)] == [True, True, True, True, True]
    with pytest.raises(FuserlError, match="conversation has 3.. tokens"):
        list(load(llama, "rewards.reward_model.on_too_long=error").score(items(asked)))


def test_a_conversation_that_the_template_refuses_gets_no_number(llama):
    (found,) = load(llama).score(items(["4"], prompt=[Message("system", "s"), Message("user", "u")]))
    assert found.reward is None
    assert "no system turns" in found.detail["message"]


def test_identity_is_what_decides_a_number(llama, tmp_path):
    one = load(llama).identity()
    copied = shutil.copytree(llama, tmp_path / "copy")
    same = ["rewards.reward_model.classifier.max_batch_tokens=9", "rewards.reward_model.window=9"]
    assert load(copied, *same).identity() == one
    others = [
        load(save("llama", tmp_path / "other", seed=1)).identity(),
        load(llama, "rewards.reward_model.classifier.dtype=bfloat16").identity(),
        load(llama, "form@.form=plain").identity(),
        load(llama, "rewards.reward_model.max_length=50").identity(),
        load(llama, "rewards.reward_model.form.date_string='1 Jan 2025'").identity(),
    ]
    assert all(other != one for other in others)


def test_in_bfloat16_the_head_stays_exact_and_numbers_are_near(llama):
    scorer = load(llama, "rewards.reward_model.classifier.dtype=bfloat16")
    half = numbers(scorer)
    model = scorer.classifier._free.get()
    assert model.score.weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    exact = numbers(load(llama))
    spread = torch.tensor(exact).std().item()
    assert max(abs(a - b) for a, b in zip(half, exact, strict=True)) < 0.2 * spread
    assert len(set(half)) == len(set(exact)), "no ties that float32 does not have"
    again = numbers(
        load(
            llama,
            "rewards.reward_model.classifier.dtype=bfloat16",
            "rewards.reward_model.classifier.max_batch_tokens=1",
        )
    )
    assert half == pytest.approx(again, abs=0.1 * spread)


def test_the_verb_scores_with_a_reward_model_and_a_second_run_reads_no_weights(llama, tmp_path, monkeypatch):
    write_groups(groups(), tmp_path / "data")
    overrides = [
        f"data.path={tmp_path / 'data'}",
        f"output={tmp_path / 'out'}",
        "reward=reward_model",
        f"rewards.reward_model.path={llama}",
    ]
    folder = score(compose("score", overrides))
    scorer = load(llama)
    for group in iter_groups(folder):
        found = numbers(scorer, [r.text for r in group.responses], prompt=group.prompt)
        assert [r.reward for r in group.responses] == pytest.approx(found, abs=1e-5)
    monkeypatch.setattr(heads, "loaded", lambda *_, **__: pytest.fail("weights were read"))
    score(compose("score", overrides))


def causal(folder):
    LlamaForCausalLM(FAMILIES["llama"]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def pickled(folder):
    save("llama", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def without_template(folder):
    save("llama", folder)
    (folder / "chat_template.jinja").unlink()


def several_labels(folder):
    config = FAMILIES["llama"]()
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (causal, "has no `score.weight`", "reward=armorm"),
        (pickled, "cannot be loaded", "safetensors"),
        (without_template, "no chat template", "rewards.reward_model.form.chat_template"),
        (several_labels, "3 labels", "label_logit"),
        (lambda folder: None, "tokenizer cannot be loaded", "rewards.reward_model.path"),
    ],
)
def test_models_that_cannot_score_are_told(tmp_path, make, what, hint):
    (tmp_path / "model").mkdir()
    make(tmp_path / "model")
    with pytest.raises(FuserlError, match=what) as caught:
        numbers(load(tmp_path / "model"))
    assert hint in f"{caught.value.where} {caught.value.hint}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("rewards.reward_model.on_too_long=cut", "no way to treat long"),
        ("rewards.reward_model.classifier.pooled=mean", "no place to read"),
        ("rewards.reward_model.classifier.dtype=float3", "no dtype"),
        ("rewards.reward_model.classifier.devices=cuda:77", "no device"),
    ],
)
def test_settings_are_checked_before_weights_are_read(llama, change, what):
    with pytest.raises(FuserlError, match=what):
        load(llama, change)


def test_one_of_several_labels_or_a_score_of_its_own_can_be_read():
    several = SimpleNamespace(logits=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), score=torch.tensor([[5.0], [6.0]]))
    assert heads.label_logit(several, label=1).tolist() == [2.0, 4.0]
    assert heads.score_attribute(several).tolist() == [5.0, 6.0]
    with pytest.raises(FuserlError, match="no number 2"):
        heads.label_logit(several, label=2)
    with pytest.raises(FuserlError, match="no field `score`"):
        heads.score_attribute(SimpleNamespace(logits=several.logits))


@given(lengths=st.lists(st.integers(1, 50), max_size=30), most=st.integers(1, 200))
def test_batches_hold_every_row_once_within_their_tokens(lengths, most):
    batches = bucketed(lengths, most)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= most
    longest = [lengths[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_padding_stands_on_the_right_under_a_mask():
    ids, mask = padded([[5, 6, 7], [8]], pad=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


class Pooling:
    """What the scorer uses of vLLM."""

    PoolingParams = SimpleNamespace
    __version__ = "9.9"

    def __init__(self, labels: int = 1) -> None:
        self.labels, self.started, self.asked, self.shut = labels, [], [], 0
        core = SimpleNamespace(shutdown=self._shutdown)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def LLM(self, **settings):
        self.started.append(settings)
        return self

    def encode(self, prompts, *, pooling_params, pooling_task, use_tqdm):
        assert (pooling_params.use_activation, pooling_task, use_tqdm) == (False, "classify", False)
        self.asked += [prompt["prompt_token_ids"] for prompt in prompts]
        data = [torch.full((self.labels,), float(len(prompt["prompt_token_ids"]))) for prompt in prompts]
        return [SimpleNamespace(outputs=SimpleNamespace(data=one)) for one in data]

    def _shutdown(self) -> None:
        self.shut += 1


VLLM = "classifier@.classifier=vllm"


def test_vllm_is_asked_for_plain_logits_of_our_tokens(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", pooling := Pooling())
    scorer = load(llama, VLLM)
    assert not pooling.started, "nothing starts before it is needed"
    found = numbers(scorer, ["4", "", "four"])
    ids = [
        one.ids
        for one in scorer.form.encode([(item.group.prompt, item.response.text) for item in items(["4", "four"])])
    ]
    assert pooling.asked == ids
    assert found == [len(ids[0]), None, len(ids[1])]
    assert (pooling.started[0]["runner"], pooling.started[0]["max_model_len"], len(pooling.started)) == (
        "pooling",
        200,
        1,
    )
    assert scorer.identity()["classifier"] == {"by": "vllm", "version": "9.9", "dtype": "float32"}
    scorer.close()
    scorer.close()
    assert pooling.shut == 1


def test_what_vllm_cannot_do_is_told(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", Pooling(labels=3))
    with pytest.raises(FuserlError, match="3 labels"):
        numbers(load(llama, VLLM))
    broken = Pooling()
    broken.LLM = lambda **_: (_ for _ in ()).throw(ValueError("no such architecture\nat all"))
    monkeypatch.setitem(sys.modules, "vllm", broken)
    with pytest.raises(FuserlError, match=r"cannot load the reward model \(no such architecture\)"):
        numbers(load(llama, VLLM))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(FuserlError, match="vLLM is not installed"):
        load(llama, VLLM)

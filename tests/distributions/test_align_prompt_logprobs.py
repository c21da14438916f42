"""What vLLM says of a prompt becomes what `transformers` would have said. A real vLLM runs in tests/with_vllm."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import kit
import numpy as np
import pytest
from align_kit import models, overrides, run, write_data  # noqa: F401

from fuserl.distributions.collect_vllm import PromptLogprobs, VllmCollector, expected
from fuserl.errors import FuserlError
from fuserl.settings import compose

VOCABULARY, PADDED, TOP = 20, 24, 5


def said_of(logps: np.ndarray, label: int, k: int = TOP) -> dict[int, SimpleNamespace]:
    """A position as vLLM tells it: the k likeliest, and the label wherever it ranks."""
    order = np.argsort(-logps)
    ranks = {int(token): place + 1 for place, token in enumerate(order)}
    told = [label, *(int(token) for token in order[:k] if token != label)]
    return {token: SimpleNamespace(logprob=float(logps[token]), rank=ranks[token]) for token in told}


def dense(rows: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (rows, PADDED))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_top_label_and_rest_are_those_of_the_dense_row():
    logps = dense(40)
    labels = np.random.default_rng(1).integers(0, VOCABULARY, 40).tolist()
    top, ce, tail = expected([said_of(*one) for one in zip(logps, labels, strict=True)], labels, TOP, VOCABULARY)
    assert ce == pytest.approx([-logps[n, label] for n, label in enumerate(labels)])
    for n, row in enumerate(logps):
        wanted = [int(t) for t in np.argsort(-row)[:TOP] if t < VOCABULARY]  # padding takes places, and is not told
        assert top.ids[n].tolist() == [*wanted, *[-1] * (TOP - len(wanted))]
        assert top.logps[n, : len(wanted)] == pytest.approx(row[wanted])
        assert np.exp(tail[n]) == pytest.approx(1 - np.exp(row[wanted]).sum())
    assert any(label not in top.ids[n] for n, label in enumerate(labels)), "no label was unlikely"


def test_a_position_that_is_certain_leaves_nothing():
    row = np.where(np.arange(PADDED) == 3, 0.0, -np.inf)
    top, ce, tail = expected([said_of(row, 3)], [3], TOP, VOCABULARY)
    assert top.ids[0, 0] == 3
    assert ce[0] == 0.0
    assert tail[0] == -np.inf


def test_nothing_said_is_no_number():
    top, ce, _ = expected([{}, {}], [1, 2], TOP, VOCABULARY)
    assert np.isnan(ce).all()
    assert (top.ids == -1).all()


class Engine:
    """Stands for `vllm.LLM`; a token is expected by its place in the text alone."""

    def __init__(self, context: int) -> None:
        self.model_config, self.asked = SimpleNamespace(max_model_len=context), []

    def generate(self, prompts, params, use_tqdm):
        assert not use_tqdm
        answers = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            assert len(ids) < self.model_config.max_model_len
            self.asked.append(ids)
            rows = np.tile(dense(len(ids), 3), (1, 3))[:, : kit.VOCABULARY]
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            told = [None, *(said_of(row, label) for row, label in zip(rows[1:], ids[1:], strict=True))]
            answers.append(SimpleNamespace(prompt_logprobs=told))
        return answers


def test_rows_are_those_of_the_trained_tokens(tmp_path):
    store = kit.token_store(tmp_path)
    used, lengths = np.asarray(store.valid), store.prompt_tokens[:, None] + store.branch_tokens
    engine = Engine(int(lengths.max()))  # one token more than the longest text may have: vLLM answers, always
    opened = PromptLogprobs(engine, None, TOP, kit.VOCABULARY)
    read = list(opened.read(store, range(len(store)), used))
    assert [(one.row, one.column) for one in read] == list(zip(*(p.tolist() for p in np.nonzero(used)), strict=True))
    unread = 0
    for one in read:
        place = one.row, one.column
        assert len(one.ce) == len(one.top) == len(one.tail) == store.num_tokens[place]
        if lengths[place] == lengths.max():
            unread += 1
            assert np.isnan(one.ce).all()
            continue
        rows = np.tile(dense(int(lengths[place]), 3), (1, 3))[:, : kit.VOCABULARY]
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        labels = store.branch(*place)
        assert one.ce == pytest.approx(-rows[-len(labels) :][np.arange(len(labels)), labels])
    assert 0 < unread < len(read)
    assert len(engine.asked) == len({tuple(ids) for ids in engine.asked})


def test_without_vllm_it_says_what_to_install(models, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = overrides(models, write_data(tmp_path / "d.jsonl"), tmp_path, "collector=vllm")
    with pytest.raises(FuserlError) as error:
        run([one for one in settings if not one.startswith("collector.")])
    assert "vllm" in error.value.what
    assert error.value.where == "`collector=vllm`"
    assert "collector=transformers" in error.value.hint


def test_options_decide_what_is_read(monkeypatch):
    """A quantised model says something else; GPUs and memory do not."""
    module = ModuleType("vllm")
    module.__dict__["__version__"] = "1"
    monkeypatch.setitem(sys.modules, "vllm", module)
    given = {k: v for k, v in compose("align", ["collector=vllm"]).collector.items() if k != "_target_"}
    plain, fp8 = (VllmCollector(**{**given, "options": options}) for options in ({}, {"quantization": "fp8"}))
    assert plain.identity() != fp8.identity()
    assert plain.identity() == VllmCollector(**{**given, "options": {}, "tensor_parallel_size": 8}).identity()
    with pytest.raises(FuserlError, match="tensor_parallel_size"):
        VllmCollector(**{**given, "tensor_parallel_size": 0})

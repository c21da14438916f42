"""What may be drawn is the same as in vLLM: our functions against those of the release that is installed."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from vllm.model_executor.layers.utils import apply_penalties
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from fuserl.models.drawing import GREEDY, Drawing, allowed, less_of_the_said, penalised, rules_of, times_said
from fuserl.sources.transformers import COLDEST

VOCABULARY = 3000
CPU = torch.device("cpu")


def logits_of(rows: int, spread: float) -> torch.Tensor:
    return spread * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_top_k_and_top_p_leave_the_same_tokens(spread):
    hows = [Drawing(top_k=k, top_p=p) for k in (0, 1, 7, 2000) for p in (0.05, 0.8, 0.95, 1.0)]
    logits = logits_of(len(hows), spread)
    ours = allowed(logits.softmax(-1), rules_of(hows, CPU))
    k = torch.tensor([how.top_k or VOCABULARY for how in hows])
    p = torch.tensor([how.top_p for how in hows])
    theirs = apply_top_k_top_p_pytorch(logits.clone(), k, p)
    differing = ((ours > 0) != theirs.isfinite()).sum(-1)
    assert (differing <= 1).all(), "sums of thousands of numbers may differ in their last digit, at the rim"
    assert (differing == 0).float().mean() > 0.7
    normal = ours / ours.sum(-1, keepdim=True)
    assert_close(normal[differing == 0], theirs.softmax(-1)[differing == 0], rtol=1e-4, atol=1e-7)


def test_a_repetition_penalty_does_the_same():
    logits = logits_of(3, 2.0)
    prompt = torch.tensor([[1, 2, 3, 3], [5, 5, 5, 5], [0, 1, 2, 3]])
    answer = torch.tensor([[1, 9], [7, 7], [2999, 0]])
    penalty = torch.tensor([1.3, 0.7, 1.0])
    none = torch.zeros(3)
    theirs = apply_penalties(logits.clone(), prompt, answer, none, none, penalty)
    assert_close(penalised(logits, torch.cat([prompt, answer], 1), penalty), theirs)


def test_presence_and_frequency_penalties_do_the_same():
    logits, said = logits_of(3, 2.0), torch.tensor([2, 4, 1])
    prompt = torch.tensor([[1, 2, 3, 3], [5, 5, 5, 5], [0, 1, 2, 3]])
    answers = [[1, 9], [7, 7, 7, 5], [2999]]
    hows = [Drawing(presence_penalty=1.3), Drawing(frequency_penalty=0.7, presence_penalty=-0.1), Drawing()]
    presence, frequency = (
        torch.tensor([getattr(how, f"{name}_penalty") for how in hows]) for name in ("presence", "frequency")
    )
    padded = torch.tensor([answer + [VOCABULARY] * (4 - len(answer)) for answer in answers])  # as vLLM pads
    theirs = apply_penalties(logits.clone(), prompt, padded, presence, frequency, torch.ones(3))
    rows = [row.tolist()[len(answer) :] + answer for row, answer in zip(prompt, answers, strict=True)]
    ours = less_of_the_said(logits, times_said(torch.tensor(rows), said, VOCABULARY), rules_of(hows, CPU))
    assert_close(ours, theirs)


def test_what_is_cold_and_what_is_greedy():
    assert SamplingParams(temperature=0.0).sampling_type.name == "GREEDY"
    assert SamplingParams(temperature=0.001).temperature == COLDEST > GREEDY
    assert SamplingParams(temperature=2 * COLDEST).temperature == 2 * COLDEST

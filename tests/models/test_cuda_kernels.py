"""What the CUDA kernels are given, without a GPU: FlexAttention uncompiled, and variable-length rows by hand."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from fuserl.models import cuda_kernels, sdpa
from fuserl.models.layout import PackLayout

BRANCHES = [(0, [16, 12, 12]), (1, [8, 16]), (2, [1, 3, 70, 1])]  # group, lengths of its prompt and its branches


def pack() -> PackLayout:
    group, branch, position = [], [], []
    for number, (prompt, *lengths) in BRANCHES:
        for which, length in enumerate([prompt, *lengths]):
            group += [number] * length
            branch += [which] * length
            position += range(prompt, prompt + length) if which else range(length)
    return PackLayout.from_columns(*map(torch.tensor, (group, branch, position)), backend="flex")


@pytest.fixture
def unwrapped(monkeypatch):
    """The module without the test run's type checks: FlexAttention reads the signatures of its functions."""
    spec = importlib.util.spec_from_file_location("plain_cuda_kernels", cuda_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where the tracer looks its functions up
    spec.loader.exec_module(module)
    module._compiled_flex = lambda: flex_attention
    return module


def states() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, sum(sum(lengths) for _, lengths in BRANCHES), 16) for heads in (4, 2, 2)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # that it is slow without a compiler
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 1.0])
def test_flex_sees_what_the_dense_mask_sees(window, softcap, unwrapped):
    layout, tensors = pack(), states()
    wanted = sdpa.dense_oracle(*tensors, layout, 0.25, window, softcap)
    assert_close(unwrapped.flex(*tensors, layout, 0.25, window, softcap), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_variable_length_rows_are_causal_from_the_bottom_right(window):
    """By hand what FlashAttention promises: query i of q sees key i + k - q and those before, `window` in all."""
    layout, (query, key, value) = pack(), states()
    rows, parts = cuda_kernels.rows_of(layout), []
    for (q0, q1), (k0, k1) in zip(rows.cu_q.unfold(0, 2, 1).tolist(), rows.cu_k.unfold(0, 2, 1).tolist(), strict=True):
        index, size = rows.keys[k0:k1], (q1 - q0, k1 - k0)
        mask = torch.ones(size, dtype=torch.bool).tril(size[1] - size[0])
        if window is not None:
            mask = mask.triu(size[1] - size[0] - window + 1)
        parts.append(
            sdpa.attend(query[:, :, q0:q1], key[:, :, index], value[:, :, index], mask[None, None], 0.25, None)
        )
    assert_close(
        torch.cat(parts, 2), sdpa.dense_oracle(query, key, value, layout, 0.25, window, None), rtol=0, atol=1e-5
    )
    assert rows.max_q == 70
    assert rows.max_k == 71

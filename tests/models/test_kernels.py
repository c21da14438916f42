"""The kernel is chosen by what the model asks for, and every kernel proves values and gradients first."""

from __future__ import annotations

from dataclasses import replace

import kit
import pytest
import torch

from fuserl.errors import FuserlError
from fuserl.models import kernels
from fuserl.models.attention import KERNELS
from fuserl.models.kernels import LIMITS, Availability, Need, availability, backends, checked, choose, needs_of
from fuserl.models.sdpa import attend_pack, dense_oracle

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HALF = Need(torch.bfloat16)


# what a model asks for


@pytest.mark.parametrize(("name", "wanted"), [
    ("llama", {(8, False, False)}),
    ("mistral", {(8, True, False)}),
    ("gemma2", {(8, True, True), (8, False, True)}),
], ids=str)  # fmt: skip
def test_needs_are_those_of_the_layers(name, wanted):
    found = needs_of(kit.tiny_model(name, torch.float32))
    assert found == {Need(torch.float32, size, size, window, softcap) for size, window, softcap in wanted}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_needs_know_the_precision_in_force(dtype):
    assert {need.dtype for need in needs_of(kit.tiny_model(dtype=dtype))} == {dtype}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {need.dtype for need in needs_of(kit.tiny_model(dtype=torch.float32))} == {torch.bfloat16}


# what is chosen


def machine(*works: str):
    """A GPU on which these kernels work, within what each says of itself."""

    def check(name: str, device: torch.device, need: Need) -> Availability:
        limits = LIMITS[name]
        if limits.half_only and need.dtype not in kernels.HALF:
            return Availability(False, "computes in half precision only")
        if need.softcap and not limits.softcap:
            return Availability(False, "has no soft-capping")
        return Availability(name in works, "is made up")

    return check


@pytest.mark.parametrize(("works", "needs", "wanted"), [
    (["torch_varlen", "flash_attn", "flex", "sdpa"], [HALF], "torch_varlen"),
    (["flash_attn", "flex", "sdpa"], [HALF], "flash_attn"),
    (["sdpa"], [HALF], "sdpa"),
    (["torch_varlen", "flash_attn", "flex", "sdpa"], [Need(torch.float32)], "sdpa"),
    (["torch_varlen", "flash_attn", "flex", "sdpa"], [Need(torch.float64)], "sdpa"),
    (["torch_varlen", "flash_attn", "flex", "sdpa"], [Need(torch.bfloat16, softcap=True)], "flash_attn"),
    (["torch_varlen", "flex", "sdpa"], [HALF, Need(torch.bfloat16, softcap=True)], "flex"),
    (["torch_varlen", "sdpa"], [HALF, Need(torch.bfloat16, window=True, softcap=True)], "sdpa"),
], ids=str)  # fmt: skip
def test_auto_is_the_first_that_does_all_that_is_needed(works, needs, wanted):
    assert choose("auto", CUDA, needs, machine(*works)) == wanted


def test_a_named_kernel_that_does_not_do_it_is_refused_with_the_reason():
    with pytest.raises(FuserlError, match="`torch_varlen` has no soft-capping") as caught:
        choose("torch_varlen", CUDA, [HALF, Need(torch.bfloat16, softcap=True)], machine(*KERNELS))
    assert "trainer.attention=auto" in str(caught.value)
    assert choose("flex", CUDA, [HALF], machine("flex")) == "flex"
    with pytest.raises(FuserlError, match="does not work here: `flex` needs a CUDA device"):
        choose("flex", CPU, [HALF])
    with pytest.raises(FuserlError, match="no attention kernel `fast`"):
        choose("fast", CPU, [HALF])


def test_when_nothing_does_it_every_reason_is_told():
    with pytest.raises(FuserlError, match="no attention kernel does what this model needs") as caught:
        choose("auto", CUDA, [Need(torch.float32)], machine())
    assert all(f"`{name}`" in str(caught.value) for name in KERNELS)
    assert "trainer.packing=padded" in str(caught.value)


@pytest.mark.parametrize("name", list(kit.CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_processor_uses_sdpa_for_every_model(name, dtype):
    assert choose("auto", CPU, needs_of(kit.tiny_model(name, dtype))) == "sdpa"


def test_what_a_kernel_says_of_itself_is_enough_to_refuse():
    """Told without running it: on a GPU that is not there."""
    assert availability("torch_varlen", CUDA, Need(torch.bfloat16, softcap=True)).why == "has no soft-capping"
    for name in ("torch_varlen", "flex"):
        assert "half precision only" in availability(name, CUDA, Need(torch.float32)).why
        assert "no heads larger than 256" in availability(name, CUDA, Need(torch.float16, 512, 512)).why
    assert set(LIMITS) == set(KERNELS)


# what a check finds


NEEDS = [
    Need(torch.float64, head, value, window, softcap)
    for head, value in ((64, 64), (24, 24), (48, 32))
    for window in (False, True)
    for softcap in (False, True)
]


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.head_size}, {need.window}, {need.softcap}")
def test_sdpa_proves_itself(need):
    found = checked("sdpa", CPU, need)
    assert found.ok, found.why
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = checked("sdpa", CPU, Need(dtype, need.head_size, need.value_size, need.window, need.softcap))
        assert found.ok, found.why


def without(part: str):
    """A kernel that ignores one thing it is asked."""

    def kernel(query, key, value, layout, scaling, window, softcap):
        window, softcap = (None if part == "window" else window), (None if part == "softcap" else softcap)
        if part == "gradient of the keys":
            key = key.detach() + 0 * key
        if part == "scaling":
            scaling = 1.01 * scaling
        if part == "neighbours":
            layout = replace(layout, branch=torch.zeros_like(layout.branch))
        return dense_oracle(query, key, value, layout, scaling, window, softcap)

    return kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["window", "softcap", "gradient of the keys", "neighbours", "scaling"])
def test_a_kernel_that_leaves_something_out_is_found_out(part, dtype, monkeypatch):
    need = Need(dtype, window=True, softcap=True)
    monkeypatch.setitem(KERNELS, "sdpa", without("nothing"))
    assert checked("sdpa", CPU, need).ok
    monkeypatch.setitem(KERNELS, "sdpa", without(part))
    found = checked("sdpa", CPU, need)
    within_rounding = part == "scaling" and dtype == torch.bfloat16  # a hundredth
    assert found.ok == within_rounding
    assert "from the dense mask" in found.why


def test_a_kernel_that_raises_is_told_why(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(KERNELS, "sdpa", broken)
    assert checked("sdpa", CPU, HALF) == Availability(False, "failed its check: no kernel image")


def test_an_open_autocast_does_not_hide_the_precision(monkeypatch):
    seen = set()

    def spy(query, *others):
        seen.add(query.dtype)
        return attend_pack(query, *others)

    monkeypatch.setitem(KERNELS, "sdpa", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert checked("sdpa", CPU, Need(torch.float64)).ok
    assert seen == {torch.float64}


def test_every_kernel_is_listed():
    found = backends()
    assert list(found) == list(KERNELS)
    assert found["sdpa"].ok
    assert all(answer.why for answer in found.values())

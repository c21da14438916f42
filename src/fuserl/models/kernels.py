"""Which attention kernel to use: the first that does what the model asks for, checked on the device in use.

A kernel that is fast and slightly wrong, or right forwards and wrong backwards, is worse than none: each is compared with
the dense definition, values and gradients, on a small random pack like the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.models.attention import KERNELS, packing
from fuserl.models.layout import PackLayout
from fuserl.models.scoring import causal_lm, check_model, decoder
from fuserl.models.sdpa import dense_oracle

HALF = (torch.bfloat16, torch.float16)
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-3,
    torch.bfloat16: 3e-2,
    torch.float16: 1e-2,
}  # of the largest value


@dataclass(frozen=True)
class Need:
    """What a layer asks of a kernel."""

    dtype: torch.dtype
    head_size: int = 64  # of queries and keys
    value_size: int = 64
    window: bool = False
    softcap: bool = False


@dataclass(frozen=True)
class Limits:
    """What a kernel says of itself; the rest is found out."""

    softcap: bool
    half_only: bool = True
    largest_head: int = 256


LIMITS = {
    "torch_varlen": Limits(softcap=False),
    "flash_attn": Limits(softcap=True),
    "flex": Limits(softcap=True),
    "sdpa": Limits(softcap=True, half_only=False, largest_head=2**20),
}


@dataclass(frozen=True)
class Availability:
    """Whether a kernel works here, and why not (or how exact it is)."""

    ok: bool
    why: str


Check = Callable[[str, torch.device, Need], Availability]


@torch.no_grad()
def needs_of(model: Any) -> frozenset[Need]:
    """What the layers of a packable model ask for, as they do it: in a forward of a few tokens, under the autocast in force."""
    base = causal_lm(model)
    place = torch.arange(4, device=next(model.parameters()).device)
    layout = PackLayout.from_columns(torch.zeros_like(place), torch.zeros_like(place), place, backend="sdpa")
    with packing():
        decoder(base)(input_ids=place[None], position_ids=place[None], use_cache=False, pack=layout)
    return frozenset(
        Need(dtype, head_size, value_size, window is not None, softcap is not None)
        for dtype, head_size, value_size, window, softcap in layout.derived["asked"]
    )


def choose(name: str, device: torch.device, needs: Iterable[Need], check: Check | None = None) -> str:
    """The kernel to use: a name, or `auto` for the first that does all a model needs.

    Args:
        needs: see `needs_of`.
        check: how to find out what works, `availability` by default.

    Raises:
        FuserlError: the named kernel does not do it, or none does.
    """
    if name != "auto" and name not in KERNELS:
        raise FuserlError(
            f"there is no attention kernel `{name}`", where="`trainer.attention`", hint=f"auto, {', '.join(KERNELS)}"
        )
    reasons = []
    for candidate in KERNELS if name == "auto" else [name]:
        found = check or availability
        why = next((answer.why for need in needs if not (answer := found(candidate, device, need)).ok), None)
        if why is None:
            return candidate
        reasons.append(f"`{candidate}` {why}")
    raise FuserlError(
        f"no attention kernel does what this model needs here: {'; '.join(reasons)}"
        if name == "auto"
        else f"the attention kernel `{name}` does not work here: {reasons[0]}",
        where="`trainer.attention`",
        hint="use `trainer.packing=padded`"
        if name == "auto"
        else "use `trainer.attention=auto`; `fuserl doctor` lists what works",
    )


def backends() -> dict[str, Availability]:
    """Every kernel in order of preference with all it says it can do, on this machine's device: for `fuserl doctor`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def whole(name: str) -> Availability:
        """Available where all that the kernel says of itself holds; else the first thing that does not."""
        limits = LIMITS[name]
        plain = Need(torch.bfloat16 if limits.half_only else torch.float64)
        needs = [plain, replace(plain, window=True)]
        needs += [replace(need, softcap=True) for need in needs if limits.softcap]
        found = [availability(name, device, need) for need in needs]
        return next((answer for answer in found if not answer.ok), found[0])

    return {name: whole(name) for name in KERNELS}


@cache
def availability(name: str, device: torch.device, need: Need) -> Availability:
    """Whether a kernel does what is needed on a device: what it says of itself, then a check."""
    limits = LIMITS[name]
    if name != "sdpa" and device.type != "cuda":
        return Availability(False, "needs a CUDA device")
    if name == "flash_attn" and not find_spec("flash_attn"):
        return Availability(False, "is not installed: pip install 'fuserl[flash]'")
    if name == "torch_varlen" and not find_spec("torch.nn.attention.varlen"):
        return Availability(False, "needs torch 2.11 or newer")
    if limits.half_only and need.dtype not in HALF:
        return Availability(False, f"computes in half precision only, not in {need.dtype}")
    if need.softcap and not limits.softcap:
        return Availability(False, "has no soft-capping")
    if max(need.head_size, need.value_size) > limits.largest_head:
        return Availability(False, f"has no heads larger than {limits.largest_head}")
    return checked(name, device, need)


def checked(name: str, device: torch.device, need: Need) -> Availability:
    """Run the kernel on a small random pack and compare values and gradients with the dense mask."""
    try:
        worst = max(_differences(name, device, need))
    except Exception as error:  # whatever a kernel raises, it cannot be used
        return Availability(
            False, f"failed its check: {str(error).splitlines()[0][:100] if str(error) else type(error).__name__}"
        )
    if not worst <= TOLERANCE[need.dtype]:
        return Availability(False, f"differs from the dense mask by {worst:.1e} of the largest value")
    return Availability(True, f"checked: differs from the dense mask by at most {worst:.1e} in values and gradients")


def _differences(name: str, device: torch.device, need: Need) -> Iterator[float]:
    """Of the output and the gradients, as a share of the largest entry."""
    group = torch.tensor([0] * 40 + [1] * 24)
    branch = torch.tensor([0] * 16 + [1] * 12 + [2] * 12 + [0] * 8 + [1] * 16)
    position = torch.tensor([*range(16), *range(16, 28), *range(16, 28), *range(8), *range(8, 24)])
    layout = PackLayout.from_columns(*(column.to(device) for column in (group, branch, position)), backend=name)
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, need.head_size), (2, need.head_size), (2, need.value_size), (4, need.value_size))
    *states, upstream = (
        torch.randn(1, heads, len(group), size, generator=generator).to(device, need.dtype) for heads, size in sizes
    )
    asked = (layout, need.head_size**-0.5, 5 if need.window else None, 1.0 if need.softcap else None)
    wanted = _with_gradients(dense_oracle, [part.double() for part in states], upstream.double(), asked)
    for got, right in zip(_with_gradients(KERNELS[name], states, upstream, asked), wanted, strict=True):
        yield float((got.double() - right).abs().max() / right.abs().max())


def _with_gradients(
    kernel: Callable[..., Tensor], states: list[Tensor], upstream: Tensor, asked: tuple
) -> list[Tensor]:
    with torch.enable_grad(), torch.autocast(upstream.device.type, enabled=False):
        states = [part.detach().requires_grad_() for part in states]
        out = kernel(*states, *asked)
        return [out.detach(), *torch.autograd.grad(out, states, upstream)]


def checked_backend(model: Any, attention: str) -> str:
    """The attention kernel for a model, chosen by `choose` and proved on it.

    Raises:
        FuserlError: the kernel is not to be had, or the model cannot be packed.
    """
    backend = choose(attention, next(model.parameters()).device, needs_of(model))
    for one in dict.fromkeys(("sdpa", backend)):
        check_model(model, one)
    return backend

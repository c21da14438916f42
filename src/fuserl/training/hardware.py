"""What a device can do: presets of `conf/hardware`, or this machine's processor, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fuserl.errors import FuserlError
from fuserl.settings import config_folder

SIDE = 1024  # of the matrices whose product measures a processor


@dataclass(frozen=True)
class Hardware:
    """One device."""

    name: str
    accelerator: str  # cpu or gpu
    memory: float  # bytes
    overhead: float  # bytes that are gone before any weight is there
    bf16_flops: float  # peak rate of dense matrix products, FLOP/s
    fp32_flops: float

    @classmethod
    def of(cls, cfg: DictConfig) -> Hardware:
        """`conf/hardware` with what is `auto` looked up.

        Raises:
            FuserlError: a number is missing or impossible.
        """
        measured = {"memory_gib": lambda: machine_memory() / 2**30} | {
            f"{name}_flops": partial(product_rate, dtype)
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        }
        memory, bf16, fp32 = (_positive(cfg, key, look) for key, look in measured.items())
        overhead = _positive(cfg, "overhead_gib", None)
        return cls(cfg.name, cfg.accelerator, memory * 2**30, overhead * 2**30, bf16, fp32)

    def rate(self, precision: str, dtype: torch.dtype) -> float:
        """Peak FLOP/s of a run with Lightning's `precision` and weights of `dtype`."""
        if "16" in precision or dtype.itemsize == 2:
            return self.bf16_flops
        return self.fp32_flops / (2 if precision == "64-true" else 1)


def _positive(cfg: DictConfig, key: str, measure: Callable[[], float] | None) -> float:
    """A number of the preset; `auto` measures it."""
    value = measure() if measure and cfg[key] == "auto" else cfg[key]
    least = 0 if measure is None else 1e-9
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        hint = "give a positive number, or `auto` for this machine's" if measure else "give a number, 0 or more"
        raise FuserlError(f"`hardware.{key}` cannot be {value}", where="`hardware`", hint=hint)
    return float(value)


def machine_memory() -> float:
    """Bytes of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@cache
def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product on this machine's processor, the best of five."""
    left = torch.randn(SIDE, SIDE).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


@cache
def _presets() -> tuple[Any, ...]:
    return tuple(OmegaConf.load(path) for path in sorted((config_folder() / "hardware").glob("*.yaml")))


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU that `conf/hardware` knows; None for any other device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(preset.bf16_flops) for preset in _presets() if preset.name in name), None)

"""Merge methods of mergekit, called through its own function for one tensor. It is an extra (LGPL): called, never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuserl.errors import FuserlError
from fuserl.merging.deltas import Inputs
from fuserl.merging.units import Energies
from fuserl.merging.weighted import Merged


@dataclass(frozen=True)
class Mergekit:
    """A method of mergekit by its name there.

    Args:
        method: its name.
        settings: what it takes, the same for all models.
        weights: one of each expert, in their order; null: `1 / experts` each; false: the method takes none.
        density: share of each delta's elements that is kept, (0, 1]; null where the method takes none.
        with_base: whether the base is one of the models that it is given.
        experts: the smallest and largest number of experts; null: any.
        by_element: whether every element is merged without the others, so that a tensor can be given in pieces.
        seed: of methods that draw; every tensor has a stream of its own, so that the order of tensors does not matter.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[float] | float | bool | None = False
    density: float | None = None
    with_base: bool = True
    experts: Sequence[int | None] = (1, None)
    by_element: bool = False
    seed: int | None = None

    def require(self, num_experts: int) -> None:
        """Raises: FuserlError: mergekit is not installed, or the method does not fit so many experts."""
        _merge_tensors()
        least, most = self.experts[0] or 1, self.experts[1]
        if num_experts < least or (most is not None and num_experts > most):
            wanted = f"exactly {least}" if least == most else f"{least} or more"
            raise FuserlError(
                f"`{self.method}` needs {wanted} experts, {num_experts} are given",
                where="`experts`",
                hint="give others",
            )
        if isinstance(self.weights, (list, tuple)) and len(self.weights) != num_experts:
            raise FuserlError(
                f"{len(self.weights)} weights are given for {num_experts} experts",
                where="`merge.weights`",
                hint="one of each expert, in their order; or null for equal ones",
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise FuserlError(
                f"`density` is {self.density!r}", where="`merge.density`", hint="it must be a share above 0 and up to 1"
            )
        self._try(num_experts)

    def pool(self, name: str) -> None:
        """Every tensor is merged by itself."""

    def energies(self, inputs: Inputs) -> Energies:
        """Nothing asks for them."""
        raise AssertionError("a tensor that is merged by itself")

    def merge(self, inputs: Inputs, energies: Energies | None) -> Merged:
        """In one piece, or in those of the inputs; computed in float32, or float64 where a model has that."""
        weights = self._weights(len(inputs.experts))
        parameters: dict[str, Any] = dict(self.settings)
        for name, values in (("weight", weights), ("density", self.density and [self.density] * len(inputs.experts))):
            if values:
                parameters[name] = {place + self.with_base: value for place, value in enumerate(values)}
        told = weights or ([self.settings["t"]] if "t" in self.settings else None)
        given = [*([inputs.base] if self.with_base else []), *inputs.experts]
        flat = [tensor.reshape(-1).split(inputs.piece) for tensor in given]
        pieces = zip(*flat, strict=True) if self.by_element else [given]
        return Merged((self._called(inputs, parameters, piece).reshape(-1) for piece in pieces), lambda: told)

    def _called(self, inputs: Inputs, parameters: dict[str, Any], tensors: Sequence[Tensor]) -> Tensor:
        with torch.random.fork_rng(enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(_seed_of(self.seed, inputs.name))
            return _merge_tensors()(
                list(tensors),
                self.method,
                parameters=parameters,
                base_index=0 if self.with_base else None,
                name=inputs.name,
                dtype=inputs.dtype,
            )

    def _try(self, num_experts: int) -> None:
        """Merge four numbers.

        Raises:
            FuserlError: mergekit does not take the settings.
        """
        try:
            list(self.merge(Inputs("a trial", torch.zeros(4), [torch.arange(4.0)] * num_experts), None).pieces)
        except (ValueError, TypeError, RuntimeError) as error:
            raise FuserlError(
                f"mergekit refuses the settings: {str(error).splitlines()[0][:200]}",
                where=f"`merge`, mergekit's method `{self.method}`",
                hint="see conf/merge for settings that work",
            ) from error

    def _weights(self, num_experts: int) -> list[float] | None:
        if self.weights is False:
            return None
        if self.weights is None:
            return [1 / num_experts] * num_experts
        return list(self.weights) if isinstance(self.weights, (list, tuple)) else [float(self.weights)] * num_experts


def _seed_of(seed: int, name: str) -> int:
    """A number of 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little") >> 1


def _merge_tensors() -> Callable[..., Tensor]:
    """mergekit's function.

    Raises:
        FuserlError: it is not installed, or cannot be imported.
    """
    try:
        from mergekit.merge_methods import merge_tensors
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mergekit"
        raise FuserlError(
            "`mergekit` is not installed" if missing else f"`mergekit` cannot be imported ({error})",
            where="`merge`",
            hint="`pip install 'fuserl[merge]'`; `merge=sce` and `merge=varm` need nothing more",
        ) from error
    return merge_tensors

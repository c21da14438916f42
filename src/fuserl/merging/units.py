"""What shares a coefficient: a matrix, a layer, the model, or every element by itself; and how energies become shares.

The energy of an expert in a unit is the sum of its squared deltas there. Shares are energies divided by their sum over
the experts. In the papers, VaRM compares means and SCE sums: over one unit both give the same shares.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LAYER = re.compile(r"(.*?\.)?\d+(?=\.)")  # up to the first number between dots


@dataclass
class Energies:
    """Of every expert in one unit."""

    values: Float[Tensor, " J"]  # float64
    elements: float  # that the values are sums over

    def add(self, other: Energies) -> None:
        """Two tensors of one unit."""
        self.values, self.elements = self.values + other.values, self.elements + other.elements


class Unit(NamedTuple):
    """How a tensor's energies are shared out."""

    pool: Callable[[str], str | None]  # tensor -> its unit; None: it needs no other tensor
    energies: Callable[
        [Float[Tensor, " J"], int], Energies
    ]  # (sums of squares, elements) of a tensor -> what its unit gets
    mean_energies: Callable[[Float[Tensor, "J c"], Energies], Float[Tensor, "J c"] | Float[Tensor, "J 1"]]
    # (squares of a piece, energies of the unit) -> mean energies to share by


def shares(mean_energies: Float[Tensor, " J *n"], least: float = 0.0) -> Float[Tensor, " J *n"]:
    """Divided by their sum over the experts; alike where that sum is zero, or less than `least`.

    >>> shares(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    total = mean_energies.sum(0)
    nothing = (total == 0) | (total < least)
    return torch.where(nothing, 1 / len(mean_energies), mean_energies / torch.where(nothing, 1, total))


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to; a tensor outside the layers is one by itself.

    >>> layer_of("model.layers.11.mlp.up_proj.weight"), layer_of("model.norm.weight")
    ('model.layers.11', 'model.norm.weight')
    """
    found = LAYER.match(name)
    return found[0] if found else name


def _alone(name: str) -> None:
    """A tensor that needs no other."""


def _everything(name: str) -> str:
    return "model"


def _sums(squares: Tensor, elements: int) -> Energies:
    return Energies(squares, elements)


def _means(squares: Tensor, elements: int) -> Energies:
    return Energies(squares / max(elements, 1), 1)


def _of_the_unit(squares: Tensor, unit: Energies) -> Tensor:
    return (unit.values / max(unit.elements, 1)).to(squares)[:, None]


def _of_each(squares: Tensor, unit: Energies) -> Tensor:
    return squares


matrix = Unit(_alone, _sums, _of_the_unit)
layer = Unit(layer_of, _sums, _of_the_unit)
layer_of_means = Unit(layer_of, _means, _of_the_unit)  # FuseChat's released code: means of matrices are added up
model = Unit(_everything, _sums, _of_the_unit)
element = Unit(_alone, _sums, _of_each)

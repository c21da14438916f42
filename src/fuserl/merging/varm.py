"""VaRM (FuseChat v1, arXiv:2402.16107 Eq. 7): experts weigh as the mean square of what they have learnt."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fuserl.merging.units import Unit, shares
from fuserl.merging.weighted import Variant, Weighted


def varm(*, unit: Unit) -> Weighted:
    """The method, for `fuserl merge`."""
    return Weighted(Variant(_all_together), unit)


def weights(deltas: Float[Tensor, " J *shape"]) -> Float[Tensor, " J"]:
    """W of one unit: `mean(δ_j²) / Σ_j' mean(δ_j'²)`; alike where nobody has learnt anything."""
    return shares(deltas.reshape(len(deltas), -1).square().mean(1))


def _all_together(deltas: Tensor, mask: Tensor | None, eta: Tensor) -> Tensor:
    """Σ W δ: because W sums to 1, the base plus this is Σ W θ, the paper's weighted mean."""
    return (eta * deltas).sum(0)

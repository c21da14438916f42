"""SCE and VaRM keep the published numbers and their laws; what is streamed is what is computed at once."""

from __future__ import annotations

import pytest
import torch
from merging_kit import literal_sce
from torch import Tensor
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.merging import sce, units, varm
from fuserl.merging.deltas import Inputs, finite
from fuserl.merging.threshold import k_largest
from fuserl.merging.weighted import Weighted, taken, variance

VARIANTS = {"paper": sce.paper, "mergekit": sce.mergekit, "authors_code": sce.authors_code}
UNITS = {name: getattr(units, name) for name in ("matrix", "layer", "layer_of_means", "model", "element")}
SHAPES = [(), (1,), (7,), (64,), (3, 5), (2, 3, 4), (0,)]
DELTAS = torch.tensor(
    [
        [[0.4, -0.1, 0.2, 0], [0.3, 0.1, -0.2, 0.5]],
        [[0.1, -0.3, 0.2, -0.4], [-0.1, 0.1, 0.4, 0.5]],
        [[-0.2, 0.2, 0.1, 0.1], [0.2, -0.1, 0.1, 0.5]],
    ],
    dtype=torch.float64,
)
PUBLISHED = {
    "paper": [[0.191525, 0, 0, -0.223729], [0, 0, 0.233898, 0]],
    "mergekit": [[0.213208, 0, 0, -0.4], [0, 0, 0.353846, 0]],
    "authors_code": [[0.213208, -0.224528, 0.189831, -0.4], [0.276923, 0.1, 0.353846, 0.5]],
}
METHODS: dict[str, Weighted] = {
    f"sce {name} {select} {unit}": sce.sce(select=select, variant=variant, unit=UNITS[unit])
    for name, variant in VARIANTS.items()
    for select, unit in ((0.3, "matrix"), (1.0, "matrix"), *([(0.3, "element")] if name == "paper" else []))
} | {f"varm {unit}": varm.varm(unit=UNITS[unit]) for unit in ("matrix", "element")}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(
    method: Weighted, deltas: Tensor, base: Tensor | None = None, piece: int = 8
) -> tuple[Tensor, list[float]]:
    """The merged tensor and its coefficients."""
    base = torch.zeros_like(deltas[0]) if base is None else base
    merged = method.merge(Inputs("x", base, [base + delta for delta in deltas], piece=piece), None)
    parts = [torch.zeros(0, dtype=deltas.dtype), *merged.pieces]
    return torch.cat(parts).reshape(base.shape), list(merged.coefficients() or [])


@pytest.mark.parametrize("name", VARIANTS)
def test_sce_gives_the_published_numbers(name):
    merged, eta = sce.fused(DELTAS, select=0.5, variant=VARIANTS[name])
    assert_close(merged, torch.tensor(PUBLISHED[name], dtype=torch.float64), atol=1e-6, rtol=0)
    assert eta.tolist() == pytest.approx([0.338983, 0.559322, 0.101695], abs=1e-6)


def test_varm_gives_the_published_weights():
    assert varm.weights(DELTAS).tolist() == pytest.approx([0.344828, 0.419540, 0.235632], abs=1e-6)
    merged, told = streamed(METHODS["varm matrix"], DELTAS)
    assert told == pytest.approx([0.344828, 0.419540, 0.235632], abs=1e-6)
    assert_close(merged, torch.einsum("j,jab->ab", varm.weights(DELTAS), DELTAS))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("select", [0.1, 0.29, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (64,), (11, 13)], ids=str)
def test_the_vectorised_method_is_the_literal_one(shape, select, name):
    deltas = draw(4, *shape)
    deltas[:, ..., 0] = deltas[0, ..., 0]  # places that do not vary
    expected, expected_eta = literal_sce(deltas, select, name)
    merged, eta = sce.fused(deltas, select=select, variant=VARIANTS[name])
    assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert_close(eta, torch.tensor(expected_eta, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("piece", [10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_streamed_is_what_is_computed_at_once(dtype, piece, name):
    deltas = draw(3, 9, 11).mul(4).round().div(4).to(dtype)  # many variances are equal
    method = sce.sce(select=0.4, variant=VARIANTS[name], unit=units.matrix)
    merged, told = streamed(method, deltas, piece=piece)
    whole, eta = sce.fused(deltas, select=0.4, variant=VARIANTS[name])
    assert_close(merged, whole)
    assert told == pytest.approx(eta.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0, 1, 2, 50, 199, 200, 500])
def test_the_k_largest_are_those_of_a_sort(k, dtype):
    numbers = draw(200).abs().mul(5).round().div(5).to(dtype)
    numbers[::7] *= 1e-30
    pieces = numbers.split(17)
    threshold = k_largest(lambda: pieces, lambda positive: min(k, positive), dtype)
    masks, ties = [], threshold.ties
    for piece in pieces:
        mask, ties = threshold.mask(piece, ties)
        masks.append(mask)
    assert ties == 0
    mask = torch.cat(masks)
    order = numbers.argsort(descending=True, stable=True)[: min(k, int(torch.count_nonzero(numbers)))]
    assert mask.nonzero().flatten().tolist() == sorted(order.tolist())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_order_of_experts_does_not_matter(shape, name):
    deltas = draw(3, *shape)
    merged, told = streamed(METHODS[name], deltas)
    for order in ([2, 0, 1], [1, 0, 2]):
        again, others = streamed(METHODS[name], deltas[order])
        assert_close(again, merged)
        assert others == pytest.approx([told[one] for one in order])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_deltas_give_the_base(shape, name):
    base = draw(*shape, seed=3) if shape else torch.tensor(0.7, dtype=torch.float64)
    merged, told = streamed(METHODS[name], torch.zeros(3, *shape, dtype=torch.float64), base)
    assert torch.equal(merged, base)
    assert told == pytest.approx([1 / 3] * 3 if base.numel() else [0] * 3)


@pytest.mark.parametrize("name", [name for name in METHODS if "0.3" not in name])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identical_experts_give_that_expert(shape, name):
    delta = draw(1, *shape)
    assert_close(streamed(METHODS[name], delta.expand(4, *shape))[0], delta[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_identical_experts_vary_nowhere_so_that_only_the_authors_code_keeps_them_under_selection(name):
    delta = draw(1, 6, 4)
    merged, eta = sce.fused(delta.expand(3, 6, 4), select=0.3, variant=VARIANTS[name])
    assert_close(merged, delta[0] if name == "authors_code" else torch.zeros_like(delta[0]))
    assert eta.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("name", [name for name in METHODS if "0.3" not in name])
def test_one_expert_alone_is_the_result(name):
    delta = draw(1, 3, 5)
    assert_close(streamed(METHODS[name], delta)[0], delta[0])
    METHODS[name].require(1)


def test_one_expert_alone_is_refused_where_variance_selects():
    with pytest.raises(FuserlError, match="does not vary"):
        METHODS["sce paper 0.3 matrix"].require(1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)], ids=str)
@pytest.mark.parametrize("factor", [-3.0, 0.5, 1000.0])
def test_scaled_deltas_give_a_scaled_result(factor, shape, name):
    """But for `mergekit`, a negative factor would turn sums of exactly zero; random ones are never zero."""
    deltas = draw(3, *shape)
    assert_close(streamed(METHODS[name], factor * deltas)[0], factor * streamed(METHODS[name], deltas)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selecting_all_selects_all(shape):
    deltas = draw(3, *shape)
    assert sce.positions(variance(deltas.reshape(3, -1)), 1.0).all()
    mine, theirs = (sce.fused(deltas, select=1.0, variant=VARIANTS[name])[0] for name in ("mergekit", "authors_code"))
    assert_close(mine, theirs)


def test_places_that_are_not_selected_keep_the_base_in_the_paper_and_in_mergekit_alone():
    deltas = draw(3, 40)
    changed = {name: int((sce.fused(deltas, select=0.25, variant=one)[0] != 0).sum()) for name, one in VARIANTS.items()}
    assert changed == {"paper": 10, "mergekit": 10, "authors_code": 40}


def test_mergekit_weighs_alike_where_deltas_are_small():
    """The mean square of usual fine-tuning is below its 1e-6, so that its η says nothing."""
    deltas = 1e-4 * DELTAS
    assert sce.fused(deltas, select=0.5, variant=sce.mergekit)[1].tolist() == pytest.approx([1 / 3] * 3)
    assert sce.fused(deltas, select=0.5, variant=sce.paper)[1].tolist() == pytest.approx(
        [0.338983, 0.559322, 0.101695], abs=1e-6
    )


@pytest.mark.parametrize("select", [0, -0.1, 1.1, True])
def test_a_share_is_a_share(select):
    with pytest.raises(FuserlError, match="`select`"):
        sce.sce(select=select, variant=sce.paper, unit=units.matrix)


def test_selected_positions_are_counted_as_released_codes_do():
    assert [taken(0.1, 30), taken(0.29, 100), taken(0.5, 7), taken(0.1, 9)] == [3, 29, 3, 0]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", ["varm", "sce"])
def test_units_share_their_coefficients(method, unit):
    """Against shares computed from all deltas of a unit, put side by side."""
    names = ("model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "model.norm")
    sizes = dict(zip(names, (30, 5, 12, 4), strict=True))
    deltas = {name: draw(3, size, seed=size) for name, size in sizes.items()}
    made = varm.varm(unit=UNITS[unit]) if method == "varm" else sce.sce(select=1.0, variant=sce.paper, unit=UNITS[unit])
    inputs = {
        name: Inputs(name, torch.zeros(one.shape[1], dtype=one.dtype), list(one), piece=7)
        for name, one in deltas.items()
    }
    pools: dict[str, units.Energies] = {}
    for name in names:
        if (pool := made.pool(name)) is not None:
            energies = made.energies(inputs[name])
            pools[pool].add(energies) if pool in pools else pools.update({pool: energies})
    together = {"matrix": lambda a, b: a == b, "layer": lambda a, b: a[:14] == b[:14], "model": lambda a, b: True}
    for name in names:
        found = made.merge(inputs[name], pools.get(made.pool(name) or ""))
        assert sum(piece.numel() for piece in found.pieces) == sizes[name]
        if unit == "element":
            squares = deltas[name].square()
            expected = (squares / squares.sum(0)).mean(1)
        else:
            of_unit = [deltas[other] for other in names if together[unit.removesuffix("_of_means")](name, other)]
            measured = [one.square().mean(1) for one in of_unit]
            pooled = sum(measured) if unit == "layer_of_means" else torch.cat(of_unit, 1).square().mean(1)
            expected = pooled / pooled.sum()
        assert found.coefficients() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("name", "layer"), [
    ("model.layers.3.mlp.up_proj.weight", "model.layers.3"), ("transformer.h.11.attn.c_attn.bias", "transformer.h.11"),
    ("model.layers.2.experts.7.w1.weight", "model.layers.2"), ("lm_head.weight", "lm_head.weight"),
])  # fmt: skip
def test_a_layer_is_named_by_its_number(name, layer):
    assert units.layer_of(name) == layer


@pytest.mark.parametrize("place", ["base", "b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hole_is_refused_with_its_tensor(value, place):
    models = {name: torch.zeros(4, 3, dtype=torch.bfloat16) for name in ("base", "a", "b")}
    models[place][2, 1] = value
    inputs = Inputs("model.norm.weight", models["base"], [models["a"], models["b"]], ["a", "b"], piece=5)
    with pytest.raises(FuserlError, match=rf"{place}`? has NaN or infinity in the tensor `model\.norm\.weight`"):
        inputs.require_finite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_holes_are_found_by_their_bits(dtype):
    info = torch.finfo(dtype)
    edges = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 2, 0.0, -0.0, -1.0], dtype=dtype)
    assert finite(edges)
    assert finite(edges[:0])
    for hole in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        assert not finite(torch.cat([edges, torch.tensor([hole], dtype=dtype)]))


def test_arithmetic_is_in_single_precision_at_least():
    half = Inputs("x", torch.ones(3, dtype=torch.bfloat16), [torch.ones(3, dtype=torch.float16)])
    double = Inputs("x", torch.ones(3, dtype=torch.bfloat16), [torch.ones(3, dtype=torch.float64)])
    assert (half.dtype, double.dtype) == (torch.float32, torch.float64)
    base, delta = torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([0.001])
    merged = METHODS["varm matrix"].merge(Inputs("x", base, [base.float() + delta]), None)
    assert next(merged.pieces).item() == pytest.approx(256.001, abs=1e-4)

"""Against mergekit 0.1.5, recorded (`record_mergekit.py`): SCE is ours, the other methods are its own behind our command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from merging_kit import family, merged, overrides, tensors
from record_mergekit import NOISE, digest

from fuserl.errors import FuserlError
from fuserl.merging.bridge import Mergekit
from fuserl.merging.configured import configured
from fuserl.merging.deltas import Inputs
from fuserl.settings import compose, plain

ORACLE = json.loads(Path(__file__).with_name("mergekit.json").read_text())
needs_mergekit = pytest.mark.skipif(find_spec("mergekit") is None, reason="needs the extra `merge`")
CALLED = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "model_stock")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    family(folder, noise=NOISE)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith("sce") else needs_mergekit) for name in ORACLE["cases"]]
)
def test_agrees_with_mergekit(models, tmp_path, name):
    case = ORACLE["cases"][name]
    assert len(list((models / "base").glob("*.safetensors"))) > 1
    there = tensors(merged(overrides(models, case["experts"]), tmp_path / "out", *case["ours"]))
    assert there.keys() == case["tensors"].keys()
    for key, expected in case["tensors"].items():
        found = digest(there[key])
        close = pytest.approx(expected["some"], rel=2e-5, abs=2e-6)
        assert found["some"] == close, f"{key}; oracle: mergekit {ORACLE['mergekit']}"
        scale = max(expected["squares"], 1e-3)
        assert found["squares"] == pytest.approx(expected["squares"], abs=2e-5 * scale), key
        assert found["sum"] == pytest.approx(expected["sum"], abs=1e-4 * max(abs(expected["sum"]), scale**0.5)), key


@needs_mergekit
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_what_is_drawn_depends_on_seed_and_tensor_alone(models, tmp_path, method):
    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))
        return tensors(merged(overrides(models, "ab"), tmp_path / name, f"merge={method}", *more))

    state = torch.random.get_rng_state()
    one, other, third = run("one"), run("another", "shard_gb=1.0e-5"), run("third", "merge.seed=1")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)
    torch.random.set_rng_state(state)


@needs_mergekit
def test_a_draw_leaves_the_callers_random_numbers_alone():
    method = Mergekit("dare_linear", weights=0.5, density=0.5, seed=3)
    state = torch.random.get_rng_state()
    method.merge(Inputs("x", torch.zeros(50), [torch.ones(50)] * 2), None)
    assert torch.equal(torch.random.get_rng_state(), state)


def configured_method(name: str) -> Mergekit:
    return configured(plain(compose("merge", ["base=x", "experts=[y]", f"merge={name}"]))["merge"]["method"])


@needs_mergekit
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("normalize", [True, False])
def test_in_pieces_is_the_whole(method, normalize):
    draw = torch.Generator().manual_seed(0)
    base, *experts = (torch.randn(7, 11, generator=draw).bfloat16() for _ in range(4))
    made = replace(configured_method(method), weights=[0.5, 0.1, 0.7], settings={"normalize": normalize})
    assert made.by_element
    pieces = list(made.merge(Inputs("x", base, experts, piece=9), None).pieces)
    assert [len(piece) for piece in pieces] == [9] * 8 + [5]
    (whole,) = replace(made, by_element=False).merge(Inputs("x", base, experts), None).pieces
    torch.testing.assert_close(torch.cat(pieces), whole)


@needs_mergekit
@pytest.mark.parametrize("method", CALLED)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5)], ids=str)
def test_small_tensors_survive(models, method, shape):
    """Identical experts must not vanish, whatever is trimmed."""
    experts = 1 if method == "slerp" else 3
    made = configured_method(method)
    base, expert = (
        torch.zeros(shape),
        torch.ones(shape) + torch.arange(max(1, torch.Size(shape).numel())).reshape(shape),
    )
    if method == "slerp":
        base = base + 1
    merged_once = torch.cat(list(made.merge(Inputs("x", base, [expert] * experts), None).pieces))
    assert merged_once.numel() == base.numel()
    assert merged_once.isfinite().all()
    assert method.startswith("dare") or merged_once.any()


@needs_mergekit
@pytest.mark.parametrize(("given", "experts", "said"), [
    (["merge=slerp"], "ab", "`slerp` needs exactly 1 experts, 2 are given"),
    (["merge=model_stock"], "a", "`model_stock` needs 2 or more experts, 1 are given"),
    (["merge=linear", "merge.weights=[1,2]"], "abc", "2 weights are given for 3 experts"),
    (["merge=ties", "merge.density=0"], "ab", "`density` is 0"),
    (["merge=ties", "merge.normalize=perhaps"], "ab", "mergekit refuses the settings"),
])  # fmt: skip
def test_settings_that_a_method_does_not_take_are_refused(models, tmp_path, given, experts, said):
    with pytest.raises(FuserlError, match=said):
        merged(overrides(models, experts), tmp_path / "out", *given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", CALLED)
def test_without_mergekit_the_install_line_is_told_and_ours_work(models, tmp_path, monkeypatch, method):
    for name in [name for name in sys.modules if name.split(".")[0] == "mergekit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mergekit", None)
    with pytest.raises(FuserlError, match="mergekit") as found:
        merged(overrides(models, "a" if method == "slerp" else "ab"), tmp_path / "out", f"merge={method}")
    assert "fuserl[merge]" in found.value.hint
    assert not list(tmp_path.iterdir())

"""What released merging code does otherwise than its paper, or than its users expect: each rule is written out and seen to differ.

docs/merging.md lists every item with its test; some are in other modules.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import kit
import pytest
import torch
from merging_kit import literal_sce, merged, overrides, random_model, save, tensors
from torch import Tensor
from torch.testing import assert_close

from fuserl.merging import sce, varm

VARIANTS = {"paper": sce.paper, "mergekit": sce.mergekit, "authors_code": sce.authors_code}
UP = "model.layers.0.mlp.up_proj.weight"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("other", ["authors_code", "mergekit"])
def test_the_papers_sce_neither_keeps_unselected_deltas_nor_divides(other):
    """papers.md 7.1: the fork masks η alone and divides by what survives; mergekit divides too."""
    deltas = draw(3, 40)
    found = sce.fused(deltas, select=0.25, variant=sce.paper)[0]
    assert_close(found, torch.tensor(literal_sce(deltas, 0.25, "paper")[0], dtype=torch.float64))
    released = torch.tensor(literal_sce(deltas, 0.25, other)[0], dtype=torch.float64)
    assert (released - found).abs().max() > 0.1
    assert int((found != 0).sum()) == 10


def test_varm_compares_every_expert_with_the_base(tmp_path):
    """papers.md 7.2: the released commands compare the experts with each other, once, and read that one result for each."""
    save(random_model(0), tmp_path / "base")
    for name, noise in (("a", 0.02), ("b", 0.06)):
        save(random_model(ord(name), noise=noise), tmp_path / name)
    out = merged(overrides(tmp_path, "ab"), tmp_path / "out", "merge=varm")
    told = {row["tensor"]: float(row["b"]) for row in csv.DictReader((out / "coefficients.csv").open())}
    base, a, b = (tensors(tmp_path / name)[UP].double() for name in ("base", "a", "b"))

    def shares(energies: list[Tensor]) -> list[float]:
        return [float(one / sum(energies)) for one in energies]

    between = (a - b).square().mean()
    assert shares([between, between]) == [0.5, 0.5]
    assert told[UP] == pytest.approx(shares([(a - base).square().mean(), (b - base).square().mean()])[1], rel=1e-4)
    assert told[UP] > 0.8
    assert varm.weights(torch.stack([a - base, b - base])).tolist()[1] == pytest.approx(told[UP], rel=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_signs_are_those_of_the_sum_and_not_of_the_count(name):
    """Trap 25, mergekit 493: the vote is weighted by magnitude. The paper's formula has the sign of the sum, too."""
    deltas = torch.tensor([[3.0, -2.0], [-1.0, 0.5], [-1.0, 0.5]], dtype=torch.float64)
    counted = deltas.sign().sum(0).sign()
    assert counted.tolist() == [-1, 1]
    found = sce.fused(deltas, select=1.0, variant=VARIANTS[name])[0]
    assert found.sign().tolist() == deltas.sum(0).sign().tolist() == [1, -1]


def test_rows_behind_the_tokenizers_last_token_are_kept(tmp_path):
    """Trap 25, mergekit 47, 139, 425: merging by a tokenizer cuts a padded vocabulary to the tokens that have a name."""
    for number, name in enumerate(("base", "a", "b")):
        save(random_model(number), tmp_path / name)
        path = tmp_path / name / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:37])
        path.write_text(json.dumps(content))
    out = merged(overrides(tmp_path, "ab"), tmp_path / "out", "merge=varm", "reload_gb=1")
    base, a, b = (tensors(tmp_path / name) for name in ("base", "a", "b"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        deltas = torch.stack([a[name], b[name]]) - base[name]
        expected = base[name] + torch.einsum("j,jab->ab", varm.weights(deltas), deltas)
        assert len(tensors(out)[name]) == 40 > 37
        assert_close(tensors(out)[name][37:], expected[37:])
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 40


@pytest.mark.parametrize(("normalize", "factor"), [(True, 1.0), (False, 1.1)])
def test_linear_weights_are_divided_by_their_sum_only_if_asked(tmp_path, normalize, factor):
    """Trap 25, mergekit 214: weights 0.1 and 1 of one model twice give that model, where 1.1 times it was expected."""
    pytest.importorskip("mergekit")
    for number, name in enumerate(("base", "a")):
        save(random_model(number), tmp_path / name)
    given = ["merge=linear", "merge.weights=[0.1,1.0]", f"merge.normalize={normalize}"]
    there = tensors(merged(overrides(tmp_path, "aa"), tmp_path / "out", *given))
    expert = tensors(tmp_path / "a")
    for name, weight in there.items():
        assert_close(weight, factor * expert[name])
    assert not torch.allclose(there[UP], (1.1 if normalize else 1.0) * expert[UP])


@pytest.mark.parametrize("page", ["merging", "alignment"])
def test_every_test_that_the_page_names_is_there(page):
    text = (kit.ROOT / "docs" / f"{page}.md").read_text()
    section = text[text.index("## Released defects") :]
    named = re.findall(r"`(test_\w+)::(test_\w+)`", section)
    assert len(named) >= 5
    modules = {path.stem: path for path in (kit.ROOT / "tests").rglob("test_*.py")}
    missing = [f"{module}::{name}" for module, name in named if not defines(modules.get(module), name)]
    assert not missing


def defines(module: Path | None, name: str) -> bool:
    return module is not None and f"def {name}(" in module.read_text()

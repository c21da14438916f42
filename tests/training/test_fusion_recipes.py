"""FuseLLM and FuseChat from texts to a model by their published recipes: other models, other data, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distributions.align_kit import models  # noqa: F401
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fuserl.distributions.store import Distributions
from fuserl.settings import compose
from fuserl.training.pipeline import pipeline

TEXTS = ("It is seven, 3 + 4 = 7.", "数学は楽しい。 so it is", "naïve </s> 🙂", "two lines\n\nand the seventh seven")
QUICK = [
    "target.dtype=float32",
    "trainer.accelerator=cpu",
    "logger=csv",
    "data.validation_fraction=0",
    "trainer.progress_bar=false",
]
FIVE = {"starling": "target", "solar": "pieces", "internlm2": "bytes", "mixtral": "target", "qwen15": "bytes"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> Path:
    """Dialogues, a corpus, a cache of its own."""
    monkeypatch.setenv("FUSERL_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "id": f"d{n}",
            "conversations": [{"from": "human", "value": f"Which is it, {n}?"}, {"from": "gpt", "value": text}],
        }
        for n, text in enumerate(TEXTS * 2)
    ]
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def run(recipe: str, folder: Path, own: dict[str, list[str]], *settings: str) -> Path:
    """The recipe with overrides for some of its stages."""
    given = "{" + ",".join(f"{name}: {json.dumps(texts)}" for name, texts in own.items()) + "}"
    return pipeline(compose("pipeline", [f"recipe={recipe}", f"output={folder}", f"overrides={given}", *settings]))


def quick(*trained: str) -> dict[str, list[str]]:
    """Overrides for small models on a processor; nothing that a recipe says is changed."""
    aligned = ["collector.device=cpu", "progress_bar=false", "target.dtype=float32", "data.validation_fraction=0"]
    return {"align": aligned} | {name: QUICK for name in trained}  # noqa: C420


def test_fusechat_makes_a_target_a_source_and_one_model_of_all(world, models):  # noqa: F811
    sources = [f"recipe.sources.{name}={models[model]}" for name, model in FIVE.items()]
    data = f"recipe.data={world / 'dialogues.jsonl'}"
    merged = run("fusechat_7b", world / "out", quick(*FIVE), data, f"recipe.pivot={models['target']}", *sources)
    folder = merged.parent
    for number, name in enumerate(FIVE, 2):
        summary = json.loads((folder / f"{number:02d}_{name}" / "summary.json").read_text())
        assert (summary["objective"], summary["steps"], summary["prompts"]) == ("distill", 3, len(TEXTS) * 2)
        assert summary["distributions"]["given"] == 1.0
        assert set(Distributions(folder / "01_align/fused" / name).made_from["models"]) == {"target", *FIVE}
    pivot, fused = (load_file(path / "model.safetensors") for path in (models["target"], merged))
    assert pivot.keys() == fused.keys()
    assert any(not torch.equal(fused[name].float(), pivot[name].to(torch.bfloat16).float()) for name in fused)
    assert {one.dtype for one in fused.values()} == {torch.bfloat16}
    answer = AutoModelForCausalLM.from_pretrained(merged)(input_ids=torch.arange(8)[None]).logits
    assert answer.isfinite().all()
    assert "sce" in (merged / "README.md").read_text().lower()


def test_fusellm_learns_from_all_models_at_once(world, models):  # noqa: F811
    given = [
        f"recipe.first={models['target']}",
        f"recipe.second={models['bytes']}",
        f"recipe.target={models['pieces']}",
    ]
    trained = run("fusellm_llama2_7b", world / "out", quick("distill"), f"recipe.data={world / 'corpus.jsonl'}", *given)
    store = Distributions(trained.parent / "01_align/fused/all")
    assert len(store) == len(TEXTS)
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["objective"], summary["steps"]) == ("distill", 1)
    shares = json.loads((trained.parent / "01_align/summary.json").read_text())["fused"][0]["weights"]
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("recipe", "trained"), [("fusechat_miniature", ["first", "second"]), ("fusellm_miniature", ["distill"])]
)
def test_the_small_recipes_end_in_graded_answers(recipe, trained, world, models):  # noqa: F811
    few = "data.limit=40"
    own = {stage: [few, *more] for stage, more in quick(*trained).items()}
    own["evaluate"] = [few, "device=cpu", "progress_bar=false"]
    sources = [f"recipe.first={models['pieces']}", f"recipe.second={models['bytes']}", "recipe.steps=2"]
    folder = run(recipe, world / "out", own, *sources)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["verb"], summary["test"]["prompts"], summary["test"]["samples"]) == ("evaluate", 40, 2)
    assert 0 <= summary["test"]["score"] <= 1
    before = {path: path.stat().st_mtime_ns for path in (world / "out").rglob("*.json")}
    run(recipe, world / "out", own, *sources)
    assert before == {path: path.stat().st_mtime_ns for path in (world / "out").rglob("*.json")}

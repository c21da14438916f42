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


def run(recipe: str, stages: list[str], world: Path, *settings: str) -> Path:
    """Stage `align` is told where, the others that they shall be quick."""
    own = {
        "align": ["collector.device=cpu", "progress_bar=false", "target.dtype=float32", "data.validation_fraction=0"]
    }
    own |= dict.fromkeys(stages, QUICK)
    given = "{" + ",".join(f"{name}: {json.dumps(texts)}" for name, texts in own.items()) + "}"
    return pipeline(
        compose("pipeline", [f"recipe={recipe}", f"output={world / recipe}", f"overrides={given}", *settings])
    )


def test_fusechat_makes_a_target_a_source_and_one_model_of_all(world, models):  # noqa: F811
    sources = [f"recipe.sources.{name}={models[model]}" for name, model in FIVE.items()]
    data = f"recipe.data={world / 'dialogues.jsonl'}"
    merged = run("fusechat_7b", list(FIVE), world, data, f"recipe.pivot={models['target']}", *sources)
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
    trained = run("fusellm_llama2_7b", ["distill"], world, f"recipe.data={world / 'corpus.jsonl'}", *given)
    store = Distributions(trained.parent / "01_align/fused/all")
    assert len(store) == len(TEXTS)
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["objective"], summary["steps"]) == ("distill", 1)
    shares = json.loads((trained.parent / "01_align/summary.json").read_text())["fused"][0]["weights"]
    assert sum(shares.values()) == pytest.approx(1.0)

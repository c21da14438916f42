"""The recipe of the papers' table, on three small models and one small benchmark: base, SFT and final beside published rows."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

import fuserl
from fuserl.evaluation.benchmarks import results
from fuserl.settings import compose
from fuserl.training.pipeline import pipeline

TARGET = Path(fuserl.__file__).parent / "miniature" / "target"


def model(folder: Path, scale: float) -> Path:
    """The shipped target, its weights scaled."""
    shutil.copytree(TARGET, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n: w * scale for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_three_models_and_four_published_rows(tmp_path):
    base, sft, final = (model(tmp_path / name, scale) for name, scale in (("a", 1.0), ("b", 1.02), ("c", 0.98)))
    more = ["benchmarks.miniature.questions.limit=10", f"benchmarks.gsm8k.questions.path={tmp_path / 'q.jsonl'}",
            "benchmarks.gsm8k.questions.read.form=null", "decoding.greedy.max_tokens=8"]  # fmt: skip
    cfg = compose("pipeline", [
        "recipe=fusechat3_suite", f"recipe.base={base}", f"recipe.sft={sft}", f"recipe.final={final}",
        "recipe.tasks=[miniature,gsm8k]", "recipe.engine=transformers", "recipe.decoding=own",
        f"recipe.more={json.dumps(more)}", f"output={tmp_path / 'suite'}",
    ])  # fmt: skip
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "2 plus 2", "answer": "#### 4"}\n')
    folder = pipeline(cfg)
    assert folder == tmp_path / "suite" / "04_table"
    with (folder / "benchmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = {(row["model"], row["benchmark"]): row for row in rows if row["published"] == "no"}
    assert {name for name, _ in ours} == {"name=base", "name=SFT", "name=final"}
    for number, name in enumerate(("base", "SFT", "final"), 1):
        stage = next((tmp_path / "suite").glob(f"{number:02d}_*"))
        said = results.read(stage / "miniature").numbers[0]
        assert float(ours[f"name={name}", "miniature"]["value"]) == said.value
        about = json.loads(ours[f"name={name}", "miniature"]["about"])
        assert about["date"]
        assert about["graders"] == {"own": "FunctionScorer fuserl.miniature.tasks.score"}
    published = {
        row["model"]: row["value"] for row in rows if row["published"] == "yes" and row["benchmark"] == "gsm8k"
    }
    assert published["FuseChat-3.0: FuseChat-Llama-3.1-8B"] == "88.0"
    assert len(published) == 4
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "FuseChat-3.0: Tulu-3-8B (published)" in page
    assert "How the numbers were made" in page
    assert "Benchmarks" in (tmp_path / "suite" / "report.html").read_text(encoding="utf-8")

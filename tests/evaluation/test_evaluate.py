"""The verb `evaluate`: what it reads is the plain mean, what it answers is graded, and a folder belongs to one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fuserl
from fuserl.errors import FuserlError
from fuserl.evaluation.evaluate import evaluate
from fuserl.evaluation.runs import find_runs
from fuserl.miniature.tasks import score
from fuserl.records.formats import read_groups
from fuserl.settings import compose
from fuserl.training.setup import data_of

PACKAGE = Path(fuserl.__file__).parent / "miniature"
GRADED = ("samples=2", "max_new_tokens=8", "score=fuserl.miniature.tasks.score")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Twelve test prompts, the shipped target."""
    monkeypatch.setenv("FUSERL_CACHE", str(tmp_path / "cache"))

    def run(*more: str, output: str = "out") -> Path:
        given = [
            f"model={PACKAGE / 'target'}",
            "device=cpu",
            "data.limit=12",
            "progress_bar=false",
            f"output={tmp_path / output}",
        ]
        return evaluate(compose("evaluate", [*given, *more]))

    return run


@torch.no_grad()
def nats(model: Path, limit: int) -> tuple[float, int]:
    """Of the best response to each prompt, one forward each."""
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    total, tokens = 0.0, 0
    for _, group in zip(range(limit), read_groups(PACKAGE / "data", split="test"), strict=False):
        best = max(group.responses, key=lambda one: one.reward)
        prompt = tokenizer(f"<s>{group.prompt[-1].content}<sep>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor(
            [[*prompt, *tokenizer(best.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]]
        )
        logps = policy(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        total, tokens = total - float(logps.sum()), tokens + len(logps)
    return total, tokens


@pytest.mark.parametrize("packing", ["shared", "padded"])
def test_it_reads_the_best_responses(asked, packing):
    read = json.loads((asked(f"packing={packing}", "samples=0") / "summary.json").read_text())["test"]
    total, tokens = nats(PACKAGE / "target", 12)
    assert (read["prompts_read"], read["tokens_read"]) == (12, tokens)
    assert read["nll"] == pytest.approx(total / tokens, rel=1e-5)


def test_answers_are_graded_and_compare_reads_them(asked):
    folder = asked(*GRADED, "name=pivot")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(row["score"] == score(row["prompt"], row["answer"], None) for row in rows)
    (run,), left_out = find_runs([str(folder)])
    assert not left_out
    assert run.config["name"] == "pivot"
    assert run.series["test/nll"][0][1] == run.summary["test"]["nll"]
    assert len(run.answers) == 24


def test_a_seed_decides_the_answers(asked):
    texts = [
        (asked(*GRADED, f"seed={seed}", output=f"{n}") / "test.jsonl").read_text() for n, seed in enumerate((0, 0, 1))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_belongs_to_one_model(asked, tmp_path, capsys):
    shutil.copytree(PACKAGE / "target", tmp_path / "run" / "model")
    first = asked("samples=0", f"model={tmp_path / 'run'}")
    before = (first / "summary.json").read_bytes()
    asked("samples=0", f"model={tmp_path / 'run'}")
    assert "finished already" in capsys.readouterr().err
    assert (first / "summary.json").read_bytes() == before
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    model.model.norm.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(FuserlError, match="another model, other data or settings"):
        asked("samples=0", f"model={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("split=tset", "`split`"),
        ("samples=-1", "`samples`"),
        ("samples=many", "`samples`"),
        ("score=no.such", "`score`"),
        ("data.max_length=1", "`data.max_length`"),
        ("model=/nowhere", "/nowhere"),
        ("device=gpu7", "device"),
    ],
)
def test_a_mistake_is_told(asked, tmp_path, setting, where):
    with pytest.raises(FuserlError) as caught:
        asked(setting)
    assert where in caught.value.where
    assert caught.value.hint
    assert not (tmp_path / "out" / "summary.json").exists()


def test_training_finds_its_tokens_as_it_would_have_made_them(asked, tmp_path):
    """Both verbs share the cache: what reading left out stands in the notes, whoever tokenised."""
    asked("samples=0", "split=validation", "data.limit=null")
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    cfg = compose("train", ["trainer.accelerator=cpu", "data.limit=8", "trainer.progress_bar=false"])
    _, _, prepared = data_of(cfg)
    assert prepared.validation.store.digest == folder.name
    assert prepared.left_out == {}


def test_bad_rows_are_counted(asked, tmp_path, capsys):
    rows = [{"prompt": "sort cab", "responses": [{"source": "s", "text": "abc", "reward": 1.0}]}, {"prompt": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked("data=own", f"data.path={tmp_path / 'rows.jsonl'}", "data.on_bad_row=skip", "samples=0")
    assert "left out: 1 bad rows" in capsys.readouterr().err

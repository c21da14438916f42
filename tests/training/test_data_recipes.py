"""From prompts to groups to a trained target: both published recipes of data, in miniature, by their real verbs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

import fuserl
from fuserl.miniature.tasks import TASKS
from fuserl.models.load import load_tokenizer
from fuserl.records.formats import read_groups
from fuserl.rewards.sandbox import bubblewrap
from fuserl.settings import compose
from fuserl.training.pipeline import pipeline

TARGET = Path(fuserl.__file__).parent / "miniature" / "target"
FOUR = ("gemma2_27b", "mistral_large_2407", "qwen25_72b", "llama31_70b")
DOMAINS = {
    "instruction": "between 10 and 3{}",
    "math": "largest 3{} 22 14",
    "code": "reverse ab{}",
    "chinese": "sort d{}ca",
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Prompts of four domains, a source, a reward model whose scores lie some hundredths apart."""
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for domain, form in DOMAINS.items():
            for number in range(10):
                prompt = form.format(number)
                right = {"math": f"3{number}", "code": f"assert solve({number}) == {number}"}.get(domain)
                row = {"prompt_id": f"{domain}{number}", "prompt": prompt, "domain": domain, "reference": right}
                if domain == "math":
                    row["responses"] = [{"source": "Llama-3.1-405B", "text": f"The answer is 3{number}."}]
                file.write(json.dumps(row) + "\n")
    shutil.copytree(TARGET, tmp_path / "source")
    tokenizer = load_tokenizer(str(TARGET))
    torch.manual_seed(0)
    shape = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        initializer_range=0.02, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=128,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(**shape))
    model.score.weight.data.normal_(0, 0.02)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path


def run(world: Path, recipe: str, sources: tuple[str, ...]) -> Path:
    """The recipe with its models replaced, and nothing else but the length of answers."""
    asked = [f"sources.{name}.path={world / 'source'}" for name in sources] + ["max_tokens=12"]
    by_stage = {"generate": asked, "score": [f"rewards.reward_model.path={world / 'reward'}"]}
    overrides = "{" + ", ".join(f"{stage}: {json.dumps(given)}" for stage, given in by_stage.items()) + "}"
    given = [
        "recipe.engine=transformers",
        "recipe.reward_model=reward_model",
        f"recipe.prompts={world / 'prompts.jsonl'}",
    ]
    return pipeline(
        compose("pipeline", [f"recipe={recipe}", *given, f"overrides={overrides}", f"output={world / 'out'}"])
    )


def trained(data: Path, world: Path, objective: str, *overrides: str) -> dict:
    from fuserl.training.run import train

    fixed = ["data=own", f"data.path={data}", "logger=csv", "max_steps=2", "batch_size=4", "probe.prompts=0"]
    places = [
        f"output={world / objective}",
        f"cache={world / 'cache'}",
        "trainer.accelerator=cpu",
        "data.validation_split=none",
    ]
    folder = train(
        compose("train", [*fixed, *places, "trainer.progress_bar=false", f"objective={objective}", *overrides])
    )
    return json.loads((folder / "summary.json").read_text())


def test_fuserls_data_from_prompts_to_both_stages(world):
    selected = run(world, "fuserl_data", FOUR)
    answers = list(read_groups(world / "out" / "01_generate"))
    assert all(Counter(r.source for r in group.responses) == dict.fromkeys(FOUR, 5) for group in answers)
    pool = list(read_groups(selected / "sft", split="train"))
    whole = {group.id: group for group in read_groups(world / "out" / "02_score")}
    for group in pool:
        finished = [r.reward for r in whole[group.id].responses if r.finish_reason == "stop" and r.text.strip()]
        assert max(r.reward for r in group.responses) == max(finished)
        assert len(group.responses) <= 4
    for group in read_groups(selected / "po", split="train"):
        per_source = Counter(r.source for r in group.responses)
        assert set(per_source.values()) == {2}, "a pair of every source that has one"
    assert trained(selected / "sft", world, "fusesft")["steps"] == 2
    assert trained(selected / "po", world, "fusepo_dpo")["steps"] == 2


@pytest.mark.skipif(not bubblewrap()[0], reason="no sandbox here: `fuserl doctor` says why")
def test_fusechat3s_data_by_domain(world):
    sources = (*FOUR, "qwen25_math_72b")
    selected = run(world, "fusechat3_data", sources)
    asked = {
        group.domain: Counter(r.source for r in group.responses) for group in read_groups(world / "out" / "01_generate")
    }
    assert asked == {
        "instruction": dict.fromkeys(FOUR, 5),
        "math": {"Llama-3.1-405B": 1, "qwen25_math_72b": 5},
        "code": dict.fromkeys(FOUR, 8),
        "chinese": {"qwen25_72b": 1},
    }
    for group in read_groups(world / "out" / "02_score"):
        for response in group.responses:
            found = response.extra.get("scores", {})
            assert (response.reward is not None) == (group.domain != "chinese")
            assert ("math" in found, "code" in found) == (group.domain == "math", group.domain == "code")
            if response.source == "Llama-3.1-405B":
                assert response.verdict == "right"
    sft = list(read_groups(selected / "sft", split="train"))
    assert {group.domain for group in sft} >= {"instruction", "math", "chinese"}
    assert "code" not in {group.domain for group in sft}, "no answer here is a program that passes"
    for group in sft:
        (best,) = group.responses
        assert group.domain != "math" or best.verdict == "right"
        assert group.domain != "chinese" or best.source == "qwen25_72b"
    for group in read_groups(selected / "po", split="train"):
        high, low = sorted(group.responses, key=lambda r: -r.reward)
        assert high.source == low.source
        assert 0.01 <= high.reward - low.reward <= 0.1
        assert group.domain not in ("chinese", "code")
    assert trained(selected / "sft", world, "sft_best")["steps"] == 2


def test_the_small_worlds_prompts_are_ones_the_source_knows():
    assert {form.split()[0] for form in DOMAINS.values()} <= set(TASKS)

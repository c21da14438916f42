"""`trainer.packing=padded` takes what cannot be packed: other attention, or states instead of it."""

from __future__ import annotations

import json
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from fuserl.errors import FuserlError
from fuserl.models.generate import sample
from fuserl.models.load import load_policy
from fuserl.models.scoring import score_padded
from fuserl.settings import compose
from fuserl.tokens.collate import collate
from fuserl.training.run import train

SMALL = {"vocab_size": 64, "n_layer": 2, "n_head": 4}
STATES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
CONFIGS = {
    "bloom": lambda **other: transformers.BloomConfig(**SMALL | {"hidden_size": 32} | other),
    "mpt": lambda: transformers.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "gptj": lambda: transformers.GPTJConfig(**SMALL, n_embd=32, n_positions=128, rotary_dim=4),
    "mamba": lambda **other: transformers.MambaConfig(**STATES | other),
    "mamba2": lambda: transformers.Mamba2Config(**STATES, num_heads=8, head_dim=8, n_groups=1),
    "attention sinks": lambda: transformers.GptOssConfig(
        **kit._SHAPE, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
}
PROMPTS = [[5, 6, 7, 8], [9, 10]]


def saved(config, folder: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_scores_and_samples_are_the_models_own(name, tmp_path):
    folder, model = saved(CONFIGS[name](), tmp_path / "model")
    store = kit.token_store(tmp_path)
    batch = collate(store, [0, 1], np.array(store.valid))
    policy = load_policy(str(folder), packing="padded")
    with torch.no_grad():
        assert_close(score_padded(policy, batch), score_padded(model, batch), rtol=0, atol=1e-5)
    score_padded(policy, batch).sum().backward()
    assert all(weight.grad is not None for weight in policy.parameters())
    answers = sample(policy, PROMPTS, n=1, max_new_tokens=6, temperature=0, stop_ids=set(), seed=0)
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        assert answer == logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["bloom", "mpt", "gptj", "mamba", "mamba2"])
def test_shared_packs_refuse_them_and_name_the_way_out(name, tmp_path):
    folder, _ = saved(CONFIGS[name](), tmp_path / "model")
    with pytest.raises(FuserlError, match="trainer.packing=padded"):
        load_policy(str(folder))


@pytest.mark.filterwarnings("ignore")  # Mamba's slow path is loud
@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_they_train(name, tmp_path):
    """The whole way: reference, steps, probes, export."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(kit.ROOT / "src/fuserl/miniature/target")
    folder, _ = saved(CONFIGS[name](vocab_size=len(tokenizer)), tmp_path / "target")
    tokenizer.save_pretrained(folder)
    run = train(
        compose("train", [
            "objective=fusepo_dpo", "data=miniature", "data.limit=12", "batch_size=8", "max_steps=2", "logger=csv",
            f"target.path={folder}", "trainer.packing=padded", "trainer.accelerator=cpu", "trainer.progress_bar=false",
            "probe.prompts=2", "probe.max_new_tokens=3", f"output={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}",
        ])
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["attention_backend"] == "padded"
    assert summary["reference_cache"]["misses"] > 0
    assert (run / "model" / "model.safetensors").exists()

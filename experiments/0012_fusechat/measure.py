"""Measures model folders as `fuserl train` measures its own: validation NLL, answers to the test prompts.

python experiments/0012_fusechat/measure.py OUT SEED NAME=MODEL [NAME=MODEL ...]    OUT/NAME-SEED, which `fuserl compare` reads
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

from fuserl.models.scoring import table
from fuserl.settings import compose, plain
from fuserl.training.metrics import best_response
from fuserl.training.quiet import quiet
from fuserl.training.setup import Setup
from fuserl.training.testing import answers, groups_of_test, score_of, summary_of_test, write_answers

SETTINGS = (
    "objective=sft_best", "trainer.progress_bar=false", "test.split=test", "test.samples=2", "probe.prompts=0",
    "probe.max_new_tokens=24", "probe.score=fuserl.miniature.tasks.score",
)  # fmt: skip


@torch.no_grad()
def nll(setup: Setup) -> float:
    """Nats a token of the best response of each validation prompt."""
    held_out = setup.prepared.validation
    assert held_out
    nats, tokens = 0.0, 0
    for step in range(held_out.plan.steps):
        for position in range(held_out.plan.packs_per_step):
            scores = table(batch := held_out.pack(step, position, 0), setup.scoring.score(setup.policy, batch))
            best = best_response(scores.rewards, scores.valid)[:, None]
            nats -= float(scores.policy_logps.gather(1, best).sum())
            tokens += int(scores.num_tokens.gather(1, best).sum())
    return nats / tokens


def measure(out: Path, seed: int, name: str, model: str) -> None:
    """One model, into a folder that looks like a run's."""
    folder = out / f"{name}-{seed}"
    if (folder / "summary.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    cfg = compose("train", [*SETTINGS, f"target.path={model}", f"seed={seed}", f"output={folder}"])
    setup = Setup(cfg)
    setup.policy.eval()
    value = nll(setup)
    decode = partial(setup.tokenizer.decode, skip_special_tokens=True)
    rows = answers(setup.policy, setup.template, decode, groups_of_test(cfg), cfg, score_of(cfg))
    write_answers(folder / "test.jsonl", rows)
    (folder / "metrics.csv").write_text(f"step,val/nll\n0,{value}\n")
    given = plain(cfg) | {"model": name, "target": {"path": name}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(given)))
    summary = {
        "objective": name,
        "seed": seed,
        "validation": {"val/nll": {"last": value}},
        "test": summary_of_test(rows, "test"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"{name} seed {seed}: NLL {value:.4f}, score {summary['test']['score']:.4f}", flush=True)


def main(out: Path, seed: int, models: list[str]) -> None:
    """All of them."""
    quiet()
    for pair in models:
        name, _, model = pair.partition("=")
        measure(out, seed, name, model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

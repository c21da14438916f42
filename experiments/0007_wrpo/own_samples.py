"""The miniature's groups with four more answers to each prompt: the FuseSFT model's own, graded like the others.

    PYTHONPATH=experiments/0001_miniature python experiments/0007_wrpo/own_samples.py MODEL OUTPUT SEED

WRPO reads the target's best and worst answer; `fuserl generate` keeps the sources' answers beside them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import fuserl
from fuserl.cli import run_verb
from fuserl.records.formats import read_groups
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup

DATA = Path(fuserl.__file__).parent / "miniature" / "data"


def main(model: str, output: Path, seed: str) -> None:
    """Write `train` and `validation` with five sources, and the untouched `test`."""
    for split in ("train", "validation"):
        answers, scored, selected = (output / "work" / f"{what}_{split}" for what in ("answers", "scored", "selected"))
        run_verb("generate", [
            f"data.path={DATA}", f"data.split={split}", "data.keep_responses=true", f"output={answers}", f"seed={seed}",
            "samples=4", "max_tokens=24", "unsaid.sampling.temperature=1", "unsaid.sampling.top_p=1", f"+sources.target.path={model}",
        ])  # fmt: skip
        run_verb("score", [
            f"data.path={answers}", f"output={scored}", "combine.scorer=noisy", "reward=function",
            "rewards.function.path=fuserl.miniature.tasks.score",
            "+rewards.noisy={_target_: fuserl.rewards.function.FunctionScorer, path: noisy.score, domains: null}",
        ])  # fmt: skip
        run_verb("select", [
            f"data.path={scored}", f"output={selected}", "rules=none", "+rule@rules.empty=empty", "sft_share=1",
            "validation_fraction=0", "sft=all",
        ])  # fmt: skip
        rows = (json.dumps(row(group)) for group in read_groups(selected / "sft" / "train"))
        write_text_atomically(output / f"{split}.jsonl", "\n".join(rows) + "\n")
    shutil.copy(DATA / "test.jsonl.gz", output / "test.jsonl.gz")


def row(group: PromptGroup) -> dict:
    """One JSON line."""
    responses = [
        {"source": one.source, "sample": one.sample, "text": one.text, "reward": one.reward} for one in group.responses
    ]
    return {"prompt_id": group.id, "prompt": group.prompt[-1].content, "domain": group.domain, "responses": responses}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

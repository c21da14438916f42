"""One optimiser step of fuserl against TRL's: the same model, texts, pairs and settings; equal losses first, then times.

    python benchmarks/against_trl.py {dpo,sft} [--data zeroeval_multi alpaca_multi humaneval_multi long] [--repeats 3]

Both run as their users run them, each in a process of its own, by turns. The first step of a process is not counted.
TRL needs an environment of its own with the extra `bench`; name its interpreter with --trl-python.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import kit
import torch
from transformers import AutoConfig

from fuserl.tokens.plan import epoch_order

PROMPTS, STEPS, RATE = 2, 3, 1e-4  # prompts an optimiser step, steps a process, learning rate
SETS = {  # name: (data, tokens of a document before the question)
    "zeroeval_multi": ("zeroeval_multi", 0),
    "alpaca_multi": ("alpaca_multi", 0),
    "humaneval_multi": ("humaneval_multi", 0),
    "long": ("zeroeval_multi", 1000),
}
OURS = {
    "dpo": ["objective=fusepo_dpo", "weights=uniform", "objective.beta=0.1"],
    "sft": ["objective=fusesft", "weights=uniform", "objective.size=8"],
}


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    losses: list[float]
    seconds: list[float]  # of the steps after the first
    peak_mb: float


def ours(method: str, work: Path, data: Path) -> Run:
    """`fuserl train`."""
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)
    settings = [
        *OURS[method], "data=own", f"data.path={data}", "data.validation_fraction=0", "data.max_length=4096", f"target.path={work / 'model'}",
        "target.chat_template=plain", f"optimizer.lr={RATE}", "optimizer.warmup=0", "optimizer.decay=flat", f"batch_size={PROMPTS}",
        f"max_steps={STEPS}", "seed=0", "logger=csv", "probe.prompts=0", "trainer.accelerator=cpu", "trainer.log_every=1",
        "trainer.progress_bar=false", "trainer.checkpoint_every=100", f"output={out}", f"cache={work / 'cache'}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "fuserl", "train", *settings], check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((out / "summary.json").read_text())
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    seconds = [float(row["speed/seconds_per_step"]) for row in rows]
    return Run([float(row["train/loss"]) for row in rows], seconds[1:], summary["peak_memory_mb"])


def trl(python: str, method: str, work: Path, data: Path, rows: int, micro: int) -> Run:
    """TRL's trainer."""
    worker = Path(__file__).with_name("trl_worker.py")
    command = [
        python,
        str(worker),
        method,
        str(work / "model"),
        str(data),
        str(rows),
        str(micro),
        str(STEPS),
        str(RATE),
    ]
    done = subprocess.run(
        [*command, str(work / "trl")],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    return Run(found["losses"], found["seconds"][1:], found["peak_mb"])


@dataclass(frozen=True)
class Arithmetic:
    """Tokens and matrix FLOPs of one step."""

    tokens: int  # through the layers
    head: int  # through the head
    flops: float

    @classmethod
    def of(cls, config: AutoConfig, lengths: list[tuple[int, int]], head: int) -> Arithmetic:
        """Rows of (own tokens, tokens of the prompt seen besides); backward counts twice."""
        width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        tokens = sum(own for own, _ in lengths)
        dense = 6 * layers * (4 * width**2 + 3 * width * inner) * tokens
        attended = sum(own * (own + 1) / 2 + own * seen for own, seen in lengths)
        return cls(tokens, head, dense + 12 * layers * width * attended + 6 * width * config.vocab_size * head)


def arithmetic(groups: list, config: AutoConfig, method: str) -> tuple[Arithmetic, Arithmetic]:
    """(ours, TRL's with one pair or response at a time) for some groups."""
    template = kit.load_template(kit.tokenizer(), chat_template="plain")
    packed, separate, trained = [], [], 0
    for group in groups:
        prompt = len(template.tokenizer(template.render_prompt(group.prompt))["input_ids"])
        sizes = [len(template.tokenizer(response.text)["input_ids"]) + 1 for response in group.responses]
        packed += [(prompt, 0), *((size, prompt) for size in sizes)]
        trained += sum(sizes)
        padded = [max(pair) for pair in kit.batched(sizes, 2) for _ in pair] if method == "dpo" else sizes
        separate += [(prompt + size, 0) for size in padded]
    return Arithmetic.of(config, packed, trained), Arithmetic.of(config, separate, sum(own for own, _ in separate))


def compare(method: str, name: str, work: Path, python: str, repeats: int) -> list[list[object]]:
    """Rows of the table: one for each of TRL's micro-batches."""
    data, document = SETS[name]
    groups = kit.dealt(data, PROMPTS * STEPS, document=document, max_length=4096)
    assert len(groups) == PROMPTS * STEPS, f"{name} has only {len(groups)} groups of eight"
    folder = work / name
    folder.mkdir()
    mine = kit.write_ours(groups, folder / "ours")
    order = [groups[place] for place in epoch_order(len(groups), 0, 0, True)]  # the steps that seed 0 makes
    theirs = (kit.write_pairs if method == "dpo" else kit.write_completions)(order, folder / "theirs.jsonl")
    rows = PROMPTS * (4 if method == "dpo" else 8)
    found: dict[int, list[tuple[Run, Run]]] = {micro: [] for micro in (1, rows)}
    for _ in range(repeats):
        for micro, pairs in found.items():
            pairs.append((ours(method, work, mine), trl(python, method, work, theirs, rows, micro)))
    config = AutoConfig.from_pretrained(work / "model")
    counted, naive = arithmetic(order[PROMPTS:], config, method)
    shapes = [(1024, config.hidden_size, config.vocab_size), (1024, config.vocab_size, config.hidden_size)]
    shapes += [(2048, config.hidden_size, config.intermediate_size)] * 6 + [
        (2048, config.hidden_size, config.hidden_size)
    ] * 8
    machine = kit.matmul_rate(shapes)
    lines = []
    for micro, pairs in found.items():
        worst = max(abs(a - b) for one, other in pairs for a, b in zip(one.losses, other.losses, strict=True))
        assert worst < 2e-3, f"the losses of {STEPS} steps differ by {worst}: {pairs[0]}"
        own = kit.median([value for one, _ in pairs for value in one.seconds])
        other = kit.median([value for _, one in pairs for value in one.seconds])
        ratio = kit.median([b / a for one, two in pairs for a, b in zip(one.seconds, two.seconds, strict=True)])
        a_step = counted.flops / (STEPS - 1)
        total = kit.median([sum(one.seconds) for one, _ in pairs]) / (STEPS - 1)
        memory = [kit.median([pair[side].peak_mb for pair in pairs]) for side in (0, 1)]
        lines.append(
            [
                name, micro, f"{own:.2f}", f"{other:.2f}", f"**{ratio:.2f}**", f"{naive.flops / counted.flops:.2f}",
                f"{ratio / (naive.flops / counted.flops):.2f}", f"{memory[0]:.0f}", f"{memory[1]:.0f}", f"{memory[0] / memory[1]:.2f}",
                f"{a_step / total / machine:.0%}", f"{worst:.0e}",
            ]
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


COLUMNS = [
    "data", "TRL's micro-batch", "ours, s", "TRL, s", "TRL / ours", "of it: FLOPs", "of it: the rest", "ours, MB", "TRL, MB",
    "ours / TRL", "useful FLOPs of the machine's matrix rate", "largest difference of a step's loss",
]  # fmt: skip


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=OURS)
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl-python", default=sys.executable)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        kit.save_model(work / "model")
        lines = [
            line
            for name in options.data
            for line in compare(options.method, name, work, options.trl_python, options.repeats)
        ]
    what = (
        f"Random Llama (6 layers, 384 wide, vocabulary 50 257, tied), fp32, AdamW, clipped, {PROMPTS} prompts of 8 real responses a step, "
        f"dealt into four sources of two. Medians over {options.repeats} interleaved runs of {STEPS - 1} steps each, after one that is not "
        "counted. Reference log-probs are computed beforehand on both sides. `TRL's micro-batch` is pairs (dpo) or responses (sft) at a time: one, its fastest "
        "here, and the whole step, as ours computes it. `of it: FLOPs` is what prompts computed once, no padding and a head on response tokens alone "
        "save by arithmetic, against TRL with one pair or response at a time. Memory is the peak of the process, interpreter and optimiser included."
    )
    title = f"{'FusePO-DPO against DPOTrainer' if options.method == 'dpo' else 'FuseSFT against SFTTrainer'} (TRL 1.16)"
    kit.write(f"{options.method}_against_trl", kit.header(title, what=what) + kit.table(COLUMNS, lines))


if __name__ == "__main__":
    main()

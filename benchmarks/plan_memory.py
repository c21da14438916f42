"""What `fuserl plan` predicts of memory, against the peak of real runs in processes of their own.

    python -m benchmarks.plan_memory [--cases sft dpo ...]

Every case is predicted before it runs, from its settings alone. Asserted: the run's peak is predicted within 15 % in every case but bf16-mixed, which is shown.
Memory is the kernel's high-water mark, less what the interpreter with its libraries takes. Other load on the machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import kit
from benchmarks.groups import TASKS, dealt, write_for_both
from benchmarks.models import save_model, tokenizer
from fuserl.settings import compose
from fuserl.tokens.templates import load_template
from fuserl.training.dry_run import findings
from fuserl.training.hardware import Hardware
from fuserl.training.memory import Memory
from fuserl.training.setup import data_of

FORM = """
{prompts} prompts with 8 responses of zeroeval_multi a step (padded 2, for packs of 8192 tokens 8), {threads} threads. Of a run: the largest resident memory less
{baseline:.0f} MiB that the interpreter with its libraries takes, MiB. Of the plan: what `fuserl plan` says of the same settings, less
`hardware.overhead_gib`. Ratio: predicted / measured; asserted to be {least:.2f} to {most:.2f}, but for bf16-mixed: a processor's
kernels for bf16 copy their operands out of sight, which the plan does not know.
"""
COLUMNS = (
    "case", "model", "largest pack, tokens", "weights", "gradients", "optimiser", "activations", "head", "kept",
    "step predicted", "step measured", "ratio", "run predicted", "run measured", "ratio",
)  # fmt: skip
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Settings of one run."""

    size: str
    overrides: tuple[str, ...]
    asserted: bool = True


@dataclass(frozen=True)
class Found:
    """A case's two numbers, bytes."""

    predicted: Memory
    pack_tokens: int
    measured: dict[str, Any]
    overhead: int

    @property
    def pairs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(predicted, measured) of a step and of the whole run."""
        peaks, less = self.measured["peaks"], self.overhead
        return (self.predicted.step - less, peaks["steps"]), (self.predicted.peak - less, max(peaks.values()))


SFT, DPO = ("objective=fusesft", "trainer.max_tokens=4096"), ("objective=fusepo_dpo", "trainer.max_tokens=4096")
LORA = "target.lora={r: 16, target_modules: all-linear}"
CASES = {
    "sft": Case("", SFT),
    "sft, packs of 8192 tokens": Case("", (*SFT, "trainer.max_tokens=8192", "batch_size=8")),
    "sft, checkpointing full": Case("", (*SFT, "target.checkpointing=full")),
    "sft, checkpointing selective": Case("", (*SFT, "target.checkpointing=selective")),
    "sft, LoRA": Case("", (*SFT, LORA)),
    "sft, padded": Case("", (*SFT, "trainer.packing=padded", "batch_size=2")),
    "sft, larger model": Case("larger", SFT),
    "dpo": Case("", DPO),
    "dpo, packs of 8192 tokens": Case("", (*DPO, "trainer.max_tokens=8192", "batch_size=8")),
    "dpo, checkpointing full": Case("", (*DPO, "target.checkpointing=full")),
    "dpo, LoRA, logits_memory 0.1": Case("", (*DPO, LORA, "trainer.logits_memory=0.1")),
    "dpo, bf16-mixed": Case("", (*DPO, "trainer.precision=bf16-mixed"), asserted=False),
    "dpo, larger model, checkpointing full": Case("larger", (*DPO, "target.checkpointing=full")),
}


def measured(overrides: list[str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.memory_worker", *overrides, f"output={folder}"]
    done = subprocess.run(command, env=environment, cwd=kit.ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def predicted(overrides: list[str]) -> tuple[Memory, int, int]:
    """(memory, tokens of the largest pack, the interpreter's own), bytes."""
    cfg = compose("plan", [*overrides, "hardware=cpu"])
    hardware = Hardware.of(cfg.hardware)
    *_, prepared = data_of(cfg, "cpu")
    found = findings(cfg, prepared, hardware)
    return found.memory[cfg.target.checkpointing], found.pack_tokens, int(hardware.overhead)


def common(model: Path, data: Path, cache: Path, arguments: argparse.Namespace) -> list[str]:
    """Settings that all cases share."""
    return [
        "data=own", f"data.path={data}", "data.validation_fraction=0.25", f"target.path={model}", "target.dtype=float32",
        "trainer.accelerator=cpu", f"batch_size={arguments.prompts}", f"max_steps={arguments.steps}", f"cache={cache}",
        "probe.prompts=0", "logger=csv", "trainer.progress_bar=false", "optimizer.lr=1e-5",
    ]  # fmt: skip


def check(found: dict[str, Found], within: float) -> None:
    """Both numbers of every case.

    Raises:
        AssertionError: one is predicted worse than `within` allows.
    """
    bad = [
        f"{name}: {what} {predicted / measured - 1:+.0%}"
        for name, one in found.items()
        if name not in CASES or CASES[name].asserted
        for what, (predicted, measured) in zip(("step", "run"), one.pairs, strict=True)
        if abs(predicted / measured - 1) > within
    ]
    assert not bad, f"memory is predicted worse than {within:.0%}: {'; '.join(bad)}"


def row(name: str, size: str, one: Found) -> list[object]:
    """Of the table."""
    memory = one.predicted
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head, memory.kept)
    numbers: list[object] = [name, size, f"{one.pack_tokens:,}", *(f"{part / MIB:,.0f}" for part in parts)]
    for predicted, measured in one.pairs:
        numbers += [f"{predicted / MIB:,.0f}", f"{measured / MIB:,.0f}", f"**{predicted / measured:.2f}**"]
    return numbers


def main() -> Path:
    """Predict, run, compare, write."""
    parser = kit.options(__doc__, prompts=4, steps=2)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--larger", default="small", help="size of the cases with a larger model")
    parser.add_argument("--within", type=float, default=0.15, help="largest error, as a share")
    arguments = parser.parse_args()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        groups = dealt(TASKS[0], load_template(tokenizer()), 4 * arguments.prompts)
        data, _ = write_for_both(groups, folder, "dpo")
        sizes = {case: (CASES[case].size and arguments.larger) or arguments.size for case in arguments.cases}
        models = {size: save_model(folder / size, size, kit.DTYPES[arguments.dtype]) for size in {*sizes.values()}}
        for number, case in enumerate(arguments.cases):
            shared = common(models[sizes[case]], data, folder / f"cache{number}", arguments)
            overrides = [*shared, *CASES[case].overrides]
            memory, tokens, overhead = predicted(overrides)
            found[case] = Found(memory, tokens, measured(overrides, folder / f"run{number}", arguments), overhead)
            print(*row(case, sizes[case], found[case]), sep=" | ", flush=True)
    check(found, arguments.within)
    baseline = kit.median(one.measured["baseline"] for one in found.values()) / MIB
    form = FORM.strip().format(
        prompts=arguments.prompts, threads=arguments.threads, baseline=baseline, least=1 - arguments.within,
        most=1 + arguments.within,
    )  # fmt: skip
    rows = [row(case, sizes[case], one) for case, one in found.items()]
    text = kit.header("Memory: what `fuserl plan` predicts, and what runs took", arguments)
    return kit.write("plan_memory", f"{text}\n{form}\n\n{kit.table(COLUMNS, rows)}", arguments)


if __name__ == "__main__":
    main()

"""What both comparisons with TRL share: data, jobs, the search for TRL's micro-batch, rows of the tables."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import flops, kit
from benchmarks.groups import TASKS, Lengths, Task, as_planned, dealt, lengths, write_for_both
from benchmarks.kit import DTYPES, Pair
from benchmarks.models import save_model, tokenizer
from benchmarks.turns import Job, Run, paired, require_equal, run
from fuserl.tokens.templates import load_template


def more_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a comparison."""
    parser.add_argument(
        "--tasks", nargs="+", default=[task.name for task in TASKS], choices=[task.name for task in TASKS]
    )
    parser.add_argument("--responses", type=int, default=8, help="of a prompt; even")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of a prompt with one response")
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 2, 4, 8], help="TRL's micro-batches to choose from")
    return parser.parse_args()


ABOUT_FACTORS = """
Where the ratio comes from: FLOPs of matrix products, counted for these lengths, when TRL's way of running is changed into ours
one thing at a time. TRL {head}, and computes logits twice. `rest` is what is left of the measured ratio: kernels,
copies, passes over logits, the optimiser.
"""


@dataclass(frozen=True)
class Case:
    """One data set, written for both systems."""

    task: Task
    lengths: list[Lengths]  # of all groups, in the order of training
    ours: Path
    theirs: Path
    model: Path
    folder: Path


def prepare(task: Task, method: str, arguments: argparse.Namespace, folder: Path, *, num_groups: int) -> Case:
    """Cut real groups, write them for both, save the model."""
    folder = folder / task.name.replace(" ", "_")
    folder.mkdir(parents=True)
    template = load_template(tokenizer())
    groups = dealt(task, template, num_groups, responses=arguments.responses, max_length=arguments.max_length)
    ours, theirs = write_for_both(groups, folder, method)
    model = save_model(folder / "model", arguments.size, DTYPES[arguments.dtype])
    return Case(task, lengths(as_planned(groups), template), ours, theirs, model, folder)


def job(case: Case, arguments: argparse.Namespace, system: str, method: str, name: str, **what: Any) -> Job:
    """A worker's orders.

    Args:
        what: rows, steps, settings.
    """
    data = {"ours": case.ours, "trl": case.theirs}[system]
    return Job(
        system=system, method=method, model=str(case.model), data=str(data), out=str(case.folder / name),
        threads=arguments.threads, device=arguments.device, dtype=arguments.dtype, **what,
    )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A comparison that was measured after it was found equal."""

    name: str
    pair: Pair
    ours: Run
    theirs: Run
    gaps: dict[str, float]  # largest relative differences

    @classmethod
    def of(cls, name: str, jobs: Sequence[Job], dtype: str) -> Finding:
        """Run ours and theirs, and require equality."""
        ours, theirs = run(jobs)
        return cls(name, paired(ours, theirs), ours, theirs, require_equal(ours, theirs, dtype))

    @property
    def memory(self) -> float:
        """Ours / theirs, of what a step adds to what was there before it."""
        return self.ours.grown_mb / self.theirs.grown_mb


HEADS = {
    "cpu": "computes the head on all positions of a sequence, as it does without Triton",
    "cuda": "computes the head on trained tokens alone, as it does with Triton",
}
COLUMNS = (
    "data", "TRL's micro-batch", "TRL, s", "ours, s", "ratio", "smallest-largest", "TRL, MB", "ours, MB", "memory ratio",
    "all memory, TRL / ours, MB",
)  # fmt: skip


def row(found: Finding, micro: int | str) -> list[str]:
    """Of the main table."""
    pair = found.pair
    return [
        found.name, str(micro), f"{_median(pair.theirs):.2f}", f"{_median(pair.ours):.2f}", f"**{pair.ratio:.2f}**", pair.spread,
        f"{found.theirs.grown_mb:.0f}", f"{found.ours.grown_mb:.0f}", f"**{found.memory:.2f}**",
        f"{found.theirs.peak_mb:.0f} / {found.ours.peak_mb:.0f}",
    ]  # fmt: skip


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def factor_rows(
    found: Finding, timed: Sequence[Lengths], rows: int, arguments: argparse.Namespace, *, peer_head_all: bool
) -> list[str]:
    """Of the table of factors: counted ones, their product, and what is left of the measured ratio."""
    counted = flops.factors(timed, rows, flops.products_of(arguments.size), peer_passes=4, peer_head_all=peer_head_all)
    arithmetic = prod(counted.values())
    return [
        found.name, *(f"{value:.2f}" for value in counted.values()), f"{arithmetic:.2f}", f"{found.pair.ratio / arithmetic:.2f}",
        f"**{found.pair.ratio:.2f}**",
    ]  # fmt: skip


FACTORS = (
    "data", "no padding", "prompts once", "head on trained tokens", "logits once", "counted", "rest", "measured",
)  # fmt: skip


def length_rows(name: str, timed: Sequence[Lengths]) -> list[str]:
    """Groups, mean tokens, and the tokens of both ways."""
    responses = [size for one in timed for size in one.responses]
    prompt = sum(one.prompt for one in timed) / len(timed)
    return [
        name, str(len(timed)), f"{prompt:.0f}", f"{sum(responses) / len(responses):.0f}",
        f"{flops.shared(timed).decoder}", f"{flops.separate(timed, head_passes=3).decoder}",
    ]  # fmt: skip


LENGTHS = ("data", "groups timed", "prompt tokens, mean", "response tokens, mean", "tokens once", "tokens apart")


def gap_rows(found: Finding) -> list[str]:
    """Of the table of equality."""
    return [found.name, *(f"{gap:.0e}" for gap in found.gaps.values())]


GAPS = ("data", "first gradient", "its worst weight", "its norm", "loss of every step")


def report(title: str, form: str, rows: dict[str, list], arguments: argparse.Namespace) -> str:
    """The Markdown of all tables."""
    about = ABOUT_FACTORS.strip().format(head=HEADS[arguments.device])
    return "\n".join(
        [
            kit.header(title, arguments, extra=("trl",)),
            form.strip() + "\n",
            kit.table(COLUMNS, rows["main"]),
            "TRL's micro-batches, one timed step each:\n",
            kit.table(("data", "micro-batch", "s", "MB"), rows["micro"]),
            about + "\n",
            kit.table(FACTORS, rows["factors"]),
            "The timed groups:\n",
            kit.table(LENGTHS, rows["lengths"]),
            "Equality, largest relative differences (asserted):\n",
            kit.table(GAPS, rows["gaps"]),
        ]
    )


def all_rows(compare: Callable[[Task, Path], dict[str, list]], arguments: argparse.Namespace) -> dict[str, list]:
    """Rows of every table over the chosen data sets."""
    rows: dict[str, list] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in (task for task in TASKS if task.name in arguments.tasks):
            for name, found in compare(task, Path(folder)).items():
                rows.setdefault(name, []).extend(found)
            print(*rows["main"][-1], sep=" | ", flush=True)
    return rows

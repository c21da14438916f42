"""FuseSFT against TRL's SFTTrainer: the same responses, the same model, step by step in turn.

    python -m benchmarks.sft_against_trl [--device cuda --dtype bf16 --size 1b]

TRL runs in two ways: padded, at its fastest micro-batch, and with `packing=True` (best-fit decreasing). Every step trains
all rows of the file once, so that a packed step holds the same tokens as ours. Asserted before a time is told, for each
way: the same token sequences with the same trained tokens, the same first gradient weight by weight (sampled entries),
the same norm, and the same losses of all steps. If TRL's packing let neighbours see each other, the gradient would differ and the
row would say so instead of a ratio.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import kit, peers
from benchmarks.groups import Task
from benchmarks.turns import Job, WorkerFailed, best_micro_batch

FORM = """
Forward, backward and optimiser step over all {responses} responses of {prompts} prompts, uniform weights, the loss a mean over
response tokens, {steps} timed steps after one to warm up. The two trainers are processes that take turns step by step; ratio is the
median over steps of TRL / ours. AdamW is fused, activations are kept. TRL padded runs at the fastest of the micro-batches in
the second table; packed, with rows of at most {packed} tokens, one a micro-batch. Ours is `fuserl train` with its defaults.
MB: peak of a step less libraries and weights; last column: the whole process.
"""


def job_of_theirs(case: peers.Case, arguments: argparse.Namespace, name: str, rows: int, **settings: object) -> Job:
    """TRL over `rows` rows a step."""
    return peers.job(case, arguments, "trl", "sft", name, rows=rows, steps=arguments.steps + 1, settings=settings)


def padded_jobs(case: peers.Case, arguments: argparse.Namespace) -> list[Job]:
    """With every micro-batch that divides a step."""
    rows = arguments.prompts * arguments.responses
    return [
        job_of_theirs(
            case, arguments, f"trl{micro}", rows, per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro
        )
        for micro in arguments.micro
        if rows % micro == 0
    ]  # fmt: skip


def packed_job(case: peers.Case, arguments: argparse.Namespace) -> Job:
    """`packing=True`: as many packed rows a step as the file makes."""
    sizes = [one.prompt + size for one in case.lengths for size in one.responses]
    rows = num_packed(sizes, arguments.packed)
    return job_of_theirs(
        case, arguments, "trl_packed", rows, packing=True, max_length=arguments.packed,
        per_device_train_batch_size=1, gradient_accumulation_steps=rows,
    )  # fmt: skip


def num_packed(sizes: list[int], room: int) -> int:
    """Rows that best-fit decreasing makes of sequences."""
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(left, number) for number, left in enumerate(free) if left >= size]
        if fitting:
            free[min(fitting)[1]] -= size
        else:
            free.append(room - size)
    return len(free)


def packed_row(task: Task, ours: Job, theirs: Job, arguments: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """(row of the main table, rows of the table of equality); when packing is not exact, the row says so."""
    name = f"{task.name}, packed"
    try:
        jobs = [replace(ours, out=f"{ours.out}_packed"), theirs]
        found = peers.Finding.of(name, jobs, arguments.dtype)
    except (AssertionError, WorkerFailed) as error:
        return [name, "1", f"not compared: {str(error).splitlines()[-1]}", *[""] * (len(peers.COLUMNS) - 3)], []
    return peers.row(found, 1), [peers.gap_rows(found)]


def compare(arguments: argparse.Namespace, task: Task, folder: Path) -> dict[str, list]:
    """Rows of every table for one data set."""
    case = peers.prepare(task, "sft", arguments, folder, num_groups=arguments.prompts)
    ours = peers.job(case, arguments, "ours", "sft", "ours", rows=arguments.prompts, steps=arguments.steps + 1)
    theirs = padded_jobs(case, arguments)
    fastest, tried = best_micro_batch([replace(job, steps=2, out=f"{job.out}_tried") for job in theirs])
    best = next(job for job in theirs if job.settings == fastest.settings)
    micro = best.settings["per_device_train_batch_size"]
    found = peers.Finding.of(f"{task.name}, padded", [ours, best], arguments.dtype)
    packed, gaps = packed_row(task, ours, packed_job(case, arguments), arguments)
    head_all = arguments.device == "cpu"
    return {
        "main": [peers.row(found, micro), packed],
        "micro": [[task.name, size, f"{seconds:.2f}", f"{mb:.0f}"] for size, seconds, mb in tried],
        "factors": [peers.factor_rows(found, case.lengths, micro, arguments, peer_head_all=head_all)],
        "lengths": [peers.length_rows(task.name, case.lengths)],
        "gaps": [peers.gap_rows(found), *gaps],
    }


def main() -> Path:
    """Compare on every data set and write the tables."""
    parser = kit.options(__doc__, prompts=2, steps=5)
    parser.add_argument("--packed", type=int, default=4096, help="tokens of TRL's packed rows")
    arguments = peers.more_options(parser)
    rows = peers.all_rows(partial(compare, arguments), arguments)
    form = FORM.format(
        responses=arguments.responses, prompts=arguments.prompts, steps=arguments.steps, packed=arguments.packed
    )
    text = peers.report("FuseSFT against TRL's SFTTrainer", form, rows, arguments)
    return kit.write("sft_against_trl", text, arguments)


if __name__ == "__main__":
    main()

"""FusePO-DPO against TRL's DPOTrainer: the same pairs, the same model, step by step in turn.

    python -m benchmarks.dpo_against_trl [--device cuda --dtype bf16 --size 1b]

Asserted before a time is told: both sides train the same token sequences with the same trained tokens; the first
gradient is equal weight by weight (sampled entries), its norm too; and the losses of all steps, which drift apart as
soon as one gradient does. With uniform weights and the same number of pairs a prompt, our mean over prompts of a
prompt's mean over pairs is TRL's mean over pairs, so nothing is rescaled.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import kit, peers
from benchmarks.groups import SAMPLES, Task
from benchmarks.turns import Job, best_micro_batch

FORM = """
Forward, backward and optimiser step; reference log-probs were computed before on both sides. {prompts} prompts with
{pairs} pairs each a step, every step on other prompts, {steps} timed steps after one to warm up. The two trainers are
processes that take turns step by step; ratio is the median over steps of TRL / ours. Both keep the rows' order, AdamW is
fused, activations are kept, gradients are clipped at a norm that is never reached. TRL runs at the fastest of the
micro-batches in the second table. Ours is `fuserl train` with its defaults. MB: peak of a step less libraries and
weights; last column: the whole process.
"""


def jobs(case: peers.Case, arguments: argparse.Namespace) -> tuple[Job, list[Job]]:
    """Ours, and TRL's with every micro-batch that divides a step."""
    rows = arguments.prompts * arguments.responses // SAMPLES
    ours = peers.job(case, arguments, "ours", "dpo", "ours", rows=arguments.prompts, steps=arguments.steps + 1)
    theirs = [
        peers.job(
            case, arguments, "trl", "dpo", f"trl{micro}", rows=rows, steps=arguments.steps + 1,
            settings={"per_device_train_batch_size": micro, "gradient_accumulation_steps": rows // micro},
        )
        for micro in arguments.micro
        if rows % micro == 0
    ]  # fmt: skip
    return ours, theirs


def compare(arguments: argparse.Namespace, task: Task, folder: Path) -> dict[str, list]:
    """Rows of every table for one data set."""
    case = peers.prepare(task, "dpo", arguments, folder, num_groups=arguments.prompts * (arguments.steps + 2))
    ours, theirs = jobs(case, arguments)
    fastest, tried = best_micro_batch([replace(job, steps=2, out=f"{job.out}_tried") for job in theirs])
    best = next(job for job in theirs if job.settings == fastest.settings)
    micro = best.settings["per_device_train_batch_size"]
    found = peers.Finding.of(task.name, [ours, best], arguments.dtype)
    timed = case.lengths[arguments.prompts : arguments.prompts * (arguments.steps + 1)]
    head_all = arguments.device == "cpu"
    return {
        "main": [peers.row(found, micro)],
        "micro": [[task.name, size, f"{seconds:.2f}", f"{mb:.0f}"] for size, seconds, mb in tried],
        "factors": [peers.factor_rows(found, timed, 2 * micro, arguments, peer_head_all=head_all)],
        "lengths": [peers.length_rows(task.name, timed)],
        "gaps": [peers.gap_rows(found)],
    }


def main() -> Path:
    """Compare on every data set and write the tables."""
    arguments = peers.more_options(kit.options(__doc__, prompts=4, steps=5))
    rows = peers.all_rows(partial(compare, arguments), arguments)
    form = FORM.format(prompts=arguments.prompts, pairs=arguments.responses // SAMPLES, steps=arguments.steps)
    text = peers.report("FusePO-DPO against TRL's DPOTrainer", form, rows, arguments)
    return kit.write("dpo_against_trl", text, arguments)


if __name__ == "__main__":
    main()

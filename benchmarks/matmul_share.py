"""Share of the machine's own matrix-product rate: useful FLOPs / seconds / rate.

    python -m benchmarks.matmul_share [--device cuda --dtype bf16 --size 1b]

The rate is that of the model's own products, forward and backward, with the pack's number of tokens, measured in turn with
the steps: what the machine would need if it did nothing else. Useful FLOPs are `fuserl.training.flops`'s. Asserted first:
on a small pack, loss and gradients agree with separate padded forwards and full logits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import kit, peers
from benchmarks.groups import TASKS, Task
from benchmarks.ours_worker import overrides
from benchmarks.turns import TOLERANCE
from benchmarks.ways import forward_backward, require_exact
from fuserl.models.scoring import Packed, causal_lm, decoder, trained_states
from fuserl.models.spans import size_of, spans_of
from fuserl.settings import compose
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.training import optim
from fuserl.training.flops import Products, training_flops, work_by_row, work_of_step
from fuserl.training.hardware import peak_flops
from fuserl.training.setup import Setup

FORM = """
FusePO-DPO, forward and backward of a step's packs of {prompts} prompts with {responses} responses, then with the optimiser's step.
Rate: useful matrix products of the model's shapes at the pack's number of tokens, in TFLOP/s, measured in turn with the steps.
Share: median over {steps} repetitions of useful FLOPs / seconds / rate. MFU: against the vendor's dense bf16 peak.
Plain: forward through the layers without gradients, over as many tokens cut into ordinary causal rows as long as a prompt with a
response on average, divided by the same over the pack.
"""
COLUMNS = (
    "data", "tokens a step", "trained", "TFLOP a step", "rate", "forward, backward, s", "**share**", "with optimiser, s", "share",
    "MFU", "plain / pack", "largest difference",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A product [tokens, k] x [k, n] of the model, so many times."""

    tokens: int
    k: int
    n: int
    times: int

    @property
    def flops(self) -> int:
        """Forward and both backward products."""
        return 6 * self.tokens * self.k * self.n * self.times


def shapes_of(model: Any, pack: GroupBatch, rows: int) -> list[Shape]:
    """Of the layers with all tokens of the pack, and of the head slice by slice."""
    base = causal_lm(model)
    linear = [module.weight.shape for module in decoder(base).modules() if isinstance(module, nn.Linear)]
    found = [Shape(len(pack.input_ids), k, n, times) for (n, k), times in Counter(linear).items()]
    (vocabulary, width), trained = base.get_output_embeddings().weight.shape, len(pack.labels)
    slices = Counter(size_of(piece) for span in spans_of(pack.segments, len(pack.row), rows) for piece in span.pieces)
    assert sum(tokens * times for tokens, times in slices.items()) == trained
    return found + [Shape(tokens, width, vocabulary, times) for tokens, times in slices.items()]


def machine_rate(shapes: list[Shape], dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s over all products of the shapes: the total over the time of each, as often as it occurs."""
    seconds = 0.0
    for shape in shapes:
        inputs, outputs = (torch.randn(shape.tokens, size, device=device).to(dtype) for size in (shape.k, shape.n))
        weight = torch.randn(shape.n, shape.k, device=device).to(dtype)
        by_weight = torch.zeros_like(weight)
        products = (
            partial(torch.mm, inputs, weight.T, out=torch.empty_like(outputs)),
            partial(torch.mm, outputs, weight, out=torch.empty_like(inputs)),
            partial(torch.addmm, by_weight, outputs.T, inputs, out=by_weight),
        )
        for product in products:
            product()
            seconds += shape.times * kit.timed(product, device)
    return sum(shape.flops for shape in shapes) / seconds


def plain_forward(model: Any, pack: GroupBatch, length: int) -> None:
    """As many tokens in ordinary causal rows, through the layers."""
    ids = pack.input_ids[: len(pack.input_ids) // length * length].view(-1, length)
    with torch.no_grad():
        decoder(causal_lm(model))(input_ids=ids, use_cache=False)


def pack_forward(model: Any, pack: GroupBatch, backend: str) -> None:
    """The pack through the layers."""
    with torch.no_grad():
        trained_states(model, pack, backend)


def plain_share(setup: Setup, pack: GroupBatch, arguments: argparse.Namespace) -> float:
    """Plain causal rows / pack, of a forward through the layers, by token."""
    prompts = [segment for segment in pack.segments if segment.is_prompt]
    branches = [segment for segment in pack.segments if not segment.is_prompt]
    seen = sum(s.prompt[1] - s.prompt[0] + s.end - s.start for s in branches) // max(1, len(branches))
    length = max(1, min(seen, len(pack.input_ids) // max(1, len(prompts))))
    used = len(pack.input_ids) // length * length
    pair = kit.in_turn(
        partial(pack_forward, setup.policy, pack, setup.backend), partial(plain_forward, setup.policy, pack, length),
        arguments.steps, setup.device,
    )  # fmt: skip
    return pair.ratio * len(pack.input_ids) / used


def measure(task: Task, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """A row of the table."""
    case = peers.prepare(task, "dpo", arguments, folder, num_groups=arguments.prompts)
    job = peers.job(case, arguments, "ours", "dpo", "ours", rows=arguments.prompts, steps=1)
    setup = Setup(compose("train", overrides(job)))
    split, scoring = setup.prepared.train, setup.scoring
    assert isinstance(scoring, Packed)
    loss = partial(setup.prepared.objective.loss, progress=0.0)
    small = smallest_pack(setup)
    gap = require_exact(setup.policy, scoring, small, arguments.dtype)
    packs = [split.pack(0, position, 0).to(setup.device) for position in range(split.plan.packs_per_step)]
    model = Products.of(setup.policy)
    flops = training_flops(model, work_of_step(split.plan, work_by_row(split, model.windows), 0))
    shapes = [shape for pack in packs for shape in shapes_of(setup.policy, pack, scoring.rows)]
    optimizer, _ = optim.adamw(
        setup.policy, num_steps=1000, lr=1e-6, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup=0.0, decay=optim.flat,
        floor=0.0,
    )  # fmt: skip

    def learn() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    train = partial(forward_backward, scoring, setup.policy, packs, loss)
    train()
    learn()
    rates, both, whole = [], [], []
    for _ in range(arguments.steps):
        rates.append(machine_rate(shapes, kit.DTYPES[arguments.dtype], setup.device))
        both.append(kit.timed(train, setup.device))
        whole.append(both[-1] + kit.timed(learn, setup.device))
    share = [kit.median(flops / one / rate for one, rate in zip(side, rates, strict=True)) for side in (both, whole)]
    peak = peak_flops(setup.device)
    return [
        task.name, str(split.plan.tokens_of_step(0)), str(sum(len(pack.labels) for pack in packs)), f"{flops / 1e12:.3f}",
        f"{kit.median(rates) / 1e12:.3f}", f"{kit.median(both):.2f}", f"**{share[0]:.0%}**", f"{kit.median(whole):.2f}",
        f"{share[1]:.0%}", f"{flops / kit.median(whole) / peak:.0%}" if peak else "", f"{plain_share(setup, packs[0], arguments):.2f}",
        f"{gap:.0e}",
    ]  # fmt: skip


def smallest_pack(setup: Setup) -> GroupBatch:
    """The cheapest prompt of the first step, alone."""
    split = setup.prepared.train
    row = min(split.plan.step(0).prompts, key=split.cost)
    return collate(split.store, [row], split.used, reference=split.reference).to(setup.device)


def main() -> Path:
    """Measure on some data sets and write the table."""
    parser = kit.options(__doc__, prompts=4, steps=5)
    arguments = peers.more_options(parser)
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in (task for task in TASKS if task.name in arguments.tasks):
            rows.append(measure(task, arguments, Path(folder)))
            print(*rows[-1], sep=" | ", flush=True)
    form = FORM.strip().format(prompts=arguments.prompts, responses=arguments.responses, steps=arguments.steps)
    text = (
        kit.header("Share of the machine's matrix-product rate", arguments) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    )
    text += f"\nThe difference is relative, of loss and gradients; {TOLERANCE[arguments.dtype]:.0e} is allowed (asserted).\n"
    return kit.write("matmul_share", text, arguments)


if __name__ == "__main__":
    main()

"""Reading, tokenising and planning at size: seconds, peak memory, growth, and what a second start costs.

    python -m benchmarks.tokenising [--responses 100000 1000000]

Real groups of eight responses, repeated with a number in every prompt so that none is a copy, in a folder of parquet files.
Every measurement is a fresh process of its own that calls what `fuserl train` calls before its first step. Asserted: tokens
of the first groups equal those that are encoded one group at a time, nothing is missing, the second start tokenises
nothing, and seconds and memory do not outgrow the number of responses.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks import kit
from benchmarks.groups import TASKS, Task
from benchmarks.kit import SLACK
from benchmarks.models import tokenizer
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.reading import sides_of
from fuserl.records.schema import Message, PromptGroup
from fuserl.records.store import write_groups
from fuserl.settings import compose
from fuserl.tokens.templates import load_template
from fuserl.tokens.tokenize import encode_group
from fuserl.training.prepare import prepare

RESPONSES = 8  # of a prompt
CHECKED = 200  # groups whose tokens are compared with those that are encoded alone
FORM = """
`{task}`, {responses} responses a prompt, GPT-2's tokenizer, {threads} threads. First start: reads parquet, tokenises, finds what the
objective uses, plans an epoch of steps of 64 prompts. Second start: the same call, tokens are in the cache. Memory: the
process's peak less what it held when everything was imported. One start's seconds are measured once.
"""
COLUMNS = (
    "responses",
    "tokens",
    "first start, s",
    "responses/s",
    "tokens/s",
    "peak, MB",
    "second start, s",
    "its peak, MB",
)


@dataclass(frozen=True)
class Start:
    """What one process measured."""

    seconds: float
    peak_mb: float
    prompts: int
    tokens: int
    digest: str  # the token store's


def real_groups(task: Task, count: int) -> Iterator[PromptGroup]:
    """So many groups made of real ones.

    Raises:
        SystemExit: the data set is not there.
    """
    path = kit.DATA / task.folder
    if not path.exists():
        raise SystemExit(f"{path} is needed; FUSERL_SHARED names the folder that holds `data/`")
    real = [
        replace(group, responses=group.responses[:RESPONSES])
        for group in read_groups(str(path), split="train", form="auto", on_bad_row="skip")
        if len(group.responses) >= RESPONSES
    ]
    for number in range(count):
        group = real[number % len(real)]
        question = Message("user", f"({number}) {group.prompt[-1].content}")
        yield replace(group, id=f"p{number}", prompt=(*group.prompt[:-1], question))


def start(data: Path, cache: Path, threads: int) -> Start:
    """What a run does before it loads a model, in a fresh process."""
    torch.set_num_threads(threads)
    overrides = [f"data.path={data}", "data.validation_fraction=0", "data.max_length=100000", "batch_size=64"]
    cfg = compose("train", ["data=own", *overrides, "max_epochs=1", "probe.prompts=0", "trainer.progress_bar=false"])
    template = load_template(tokenizer())
    device = torch.device("cpu")
    kit.forget_peak(device)
    before = kit.memory_mb(device)
    prepared = None

    def work() -> None:
        nonlocal prepared
        prepared = prepare(cfg, template, cache, ranks=1, pack_tokens=16384)

    seconds = kit.timed(work, device)
    assert prepared is not None
    peak = kit.peak_mb(device) - before
    store = prepared.train.store
    for group, row in zip(islice(sides_of(cfg.data)[0].groups(ReadReport()), CHECKED), range(len(store)), strict=False):
        alone = encode_group(group, template)
        np.testing.assert_array_equal(store.prompt(row), alone.prompt)
        for column, branch in enumerate(alone.responses):
            np.testing.assert_array_equal(store.branch(row, column), branch)
    return Start(seconds, peak, len(store), len(store.tokens), store.digest)


def in_its_own_process(data: Path, cache: Path, threads: int) -> Start:
    """A start whose memory is its own, in a child of a process that has imported this module and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.tokenising"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(start, data, cache, threads).result()


def measure(task: Task, responses: int, threads: int) -> tuple[Start, Start]:
    """The first and the second start over so many responses."""
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data", Path(folder) / "cache"
        write_groups(real_groups(task, responses // RESPONSES), data)
        first, second = (in_its_own_process(data, cache, threads) for _ in range(2))
    assert first.prompts == responses // RESPONSES, f"{first.prompts} prompts of {responses // RESPONSES} are planned"
    assert (second.digest, second.tokens) == (first.digest, first.tokens), "the second start made other tokens"
    return first, second


def require_linear(sizes: list[int], starts: list[Start]) -> None:
    """Seconds and memory a response do not grow.

    Raises:
        AssertionError: they do.
    """
    for size, larger, one, other in zip(sizes, sizes[1:], starts, starts[1:], strict=False):
        growth = larger / size * SLACK
        assert other.seconds <= one.seconds * growth, f"{other.seconds / one.seconds:.1f} times the seconds"
        assert other.peak_mb <= one.peak_mb * growth, f"{other.peak_mb / one.peak_mb:.1f} times the memory"


def row(responses: int, first: Start, second: Start) -> list[str]:
    """Of the table."""
    return [
        f"{responses:,}", f"{first.tokens / 1e6:.1f} M", f"{first.seconds:.1f}", f"{responses / first.seconds:,.0f}",
        f"{first.tokens / first.seconds:,.0f}", f"{first.peak_mb:,.0f}", f"{second.seconds:.2f}", f"{second.peak_mb:,.0f}",
    ]  # fmt: skip


def main() -> Path:
    """Measure each size and write the table."""
    parser = kit.options(__doc__, prompts=64, steps=1)
    parser.add_argument("--responses", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes, ascending")
    parser.add_argument("--task", default="alpaca_multi", choices=[task.name for task in TASKS])
    arguments: argparse.Namespace = parser.parse_args()
    task = next(task for task in TASKS if task.name == arguments.task)
    found = []
    for responses in arguments.responses:
        found.append(measure(task, responses, arguments.threads))
        print(*row(responses, *found[-1]), sep=" | ", flush=True)
    require_linear(arguments.responses, [first for first, _ in found])
    rows = [row(responses, *starts) for responses, starts in zip(arguments.responses, found, strict=True)]
    form = FORM.strip().format(task=task.name, responses=RESPONSES, threads=arguments.threads)
    text = kit.header("Tokenising and planning", arguments) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("tokenising", text, arguments)


if __name__ == "__main__":
    main()

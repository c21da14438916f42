"""`fuserl select` at size: seconds, peak memory, growth; with no rules, and with the standard ones.

    python -m benchmarks.selecting [--responses 100000 1000000] [--rules none standard]

Prompts with five samples of each of four sources, responses put together of lines of real ones, FuseRL's protocol. Every
measurement is a process of its own. Asserted: from the same rows in another order come the same bytes; the counts of
every step add up to what was read; seconds do not outgrow the number of responses, and memory hardly grows with it
where no rule compares texts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch

from benchmarks import kit
from benchmarks.deduplicating import lines_of_real_answers
from benchmarks.kit import SLACK
from fuserl.curation.ledger import totals
from fuserl.curation.select import select
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import write_groups
from fuserl.settings import compose

SOURCES, SAMPLES = 4, 5
DOMAINS = ("instruction", "math", "code", "chat")
LINES = (4, 15)  # of a response
HELD_MB = 150.0  # that the memory without rules may grow by from one size to the next: ids and eight bytes a response
FORM = """
{sources} sources with {samples} samples a prompt, responses of {signs:,} characters on average, in parquet; FuseRL's
protocol: the four best, and a pair of every source. Everything from reading to the report. Memory: the process's peak less
what it held when everything was imported. One process on one core, whose seconds of work are told apart from those that
passed, because others may work on the machine too; each size is measured once.
"""
COLUMNS = (
    "rules",
    "responses",
    "prompts",
    "s",
    "s of a core",
    "responses / s of a core",
    "peak, MB",
    "dropped",
    "written",
)


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    seconds: float
    processor: float  # seconds that a processor worked; less than passed where others work too
    peak_mb: float
    dropped: int  # responses, with those of dropped prompts
    written: int


def group_of(number: int) -> PromptGroup:
    """Prompt number n."""
    random, lines = Random(number), lines_of_real_answers()
    responses = tuple(
        Response(
            f"source {source}",
            "\n".join(random.choices(lines, k=random.randint(*LINES))),
            sample,
            round(random.gauss(0.15, 0.03), 4),
            random.choice(("right", "wrong")),
            finish_reason="stop",
        )
        for source in range(SOURCES)
        for sample in range(SAMPLES)
    )
    asked = f"{random.choice(lines)[:300]} ({number})"
    return PromptGroup(f"p{number}", (Message("user", asked),), responses, DOMAINS[number % len(DOMAINS)])


def groups_of(responses: int) -> Iterator[PromptGroup]:
    """So many responses."""
    return (group_of(number) for number in range(responses // (SOURCES * SAMPLES)))


def select_from(data: Path, output: Path, rules: str) -> dict:
    """The report of a selection."""
    settings = [f"data.path={data}", f"output={output}", f"rules={rules}", "protocol=fuserl"]
    return json.loads((select(compose("select", settings)) / "report.json").read_text())


def run(data: Path, rules: str, threads: int) -> Run:
    """Select, in a fresh process."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    kit.forget_peak(device)
    before, started, worked = kit.memory_mb(device), time.perf_counter(), time.process_time()
    report = select_from(data, data.with_name(f"out-{rules}"), rules)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    require_counts_that_add_up(report)
    dropped = sum(sum(totals(entry)[1][1:3]) for entry in report["steps"])
    written = sum(sum(of.values()) for side in report["sides"].values() for of in side["written"]["responses"].values())
    return Run(seconds, processor, kit.peak_mb(device) - before, dropped, written)


def require_counts_that_add_up(report: dict) -> None:
    """What goes into a step is what came out of the one before, and what comes out is what is left of it.

    Raises:
        AssertionError: it is not.
    """
    entries = [totals(entry) for entry in report["steps"]]
    for (prompts, responses), after in zip(entries, [*entries[1:], None], strict=True):
        assert prompts[0] == prompts[1] + prompts[2]
        assert responses[0] == sum(responses[1:])
        assert after is None or (prompts[2], responses[3]) == (after[0][0], after[1][0])
    given = sum(sum(side["given"]["prompts"].values()) for side in report["sides"].values())
    assert given == entries[-1][0][2]


def require_the_same_from_another_order(responses: int) -> None:
    """Shuffled rows give the same data sets.

    Raises:
        AssertionError: they do not.
    """
    groups = list(groups_of(responses))
    found = []
    with tempfile.TemporaryDirectory() as name:
        for turn in range(2):
            folder = Path(name) / str(turn)
            folder.mkdir()
            write_groups(groups, folder / "data")
            report = select_from(folder / "data", folder / "out", "standard")
            found.append({side: one["digest"] for side, one in report["sides"].items()})
            Random(turn).shuffle(groups)
    assert found[0] == found[1], "the order of the rows decides"


def measure(responses: int, rules: list[str], threads: int) -> list[Run]:
    """One size, each set of rules in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_groups(groups_of(responses), data)
        found = []
        for name in rules:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found.append(pool.submit(run, data, name, threads).result())
    return found


def require_linear(sizes: list[int], runs: list[Run], rules: str) -> None:
    """Seconds a response do not grow; memory hardly grows where no rule compares texts.

    Raises:
        AssertionError: they do.
    """
    for size, larger, one, other in zip(sizes, sizes[1:], runs, runs[1:], strict=False):
        assert other.processor <= one.processor * larger / size * SLACK, (
            f"{rules}: {other.processor / one.processor:.1f} x"
        )
        grown = other.peak_mb - one.peak_mb
        assert rules != "none" or grown <= HELD_MB, f"{grown:.0f} MB more"


def row(rules: str, responses: int, found: Run) -> list[str]:
    """Of the table."""
    return [
        rules, f"{responses:,}", f"{responses // (SOURCES * SAMPLES):,}", f"{found.seconds:.1f}", f"{found.processor:.1f}",
        f"{responses / found.processor:,.0f}", f"{found.peak_mb:,.0f}", f"{found.dropped:,}", f"{found.written:,}",
    ]  # fmt: skip


def main() -> Path:
    """Check, measure each size, and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    sizes = [100_000, 1_000_000]
    parser.add_argument("--responses", type=int, nargs="+", default=sizes, help="multiples of 20, ascending")
    parser.add_argument("--rules", nargs="+", default=["none", "standard"], help="files of conf/rules")
    parser.add_argument(
        "--checked", type=int, default=2000, help="responses that are selected from twice, in two orders"
    )
    arguments: argparse.Namespace = parser.parse_args()
    require_the_same_from_another_order(arguments.checked)
    found: dict[str, list[Run]] = {name: [] for name in arguments.rules}
    for responses in arguments.responses:
        for name, one in zip(arguments.rules, measure(responses, arguments.rules, arguments.threads), strict=True):
            found[name].append(one)
            print(*row(name, responses, one), sep=" | ", flush=True)
    for name, runs in found.items():
        require_linear(arguments.responses, runs, name)
    rows = [row(name, *each) for name, runs in found.items() for each in zip(arguments.responses, runs, strict=True)]
    signs = [len(response.text) for group in groups_of(2000) for response in group.responses]
    form = FORM.strip().format(signs=sum(signs) // len(signs), sources=SOURCES, samples=SAMPLES)
    text = kit.header("Selecting", arguments, extra=["numpy", "pyarrow"]) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("selecting", text, arguments)


if __name__ == "__main__":
    main()

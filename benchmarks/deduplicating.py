"""Deduplicating responses at size: seconds, peak memory, growth.

    python -m benchmarks.deduplicating [--responses 100000 1000000]

Responses are put together of lines of real ones. Of every ten, one is an earlier one in other letters and spacing, and
one an earlier one in which every fortieth word is another. The rule is that of `conf/rule/duplicate_responses.yaml`
over all prompts. Every measurement is a process of its own that reads parquet as `fuserl select` does, once to fit and
once to ask. Asserted: on the first thousands, what stays is what a search over all pairs leaves; every equal text is
found, of the near ones as many as the rule promises, nothing else is dropped; seconds and memory do not outgrow the
number of responses.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks import kit
from benchmarks.kit import SLACK
from fuserl.curation.rules import sifted
from fuserl.curation.texts import normalised, words
from fuserl.records.formats import read_groups
from fuserl.records.rows import Needs
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import iter_groups, write_groups
from fuserl.settings import config_folder

SETS = ("alpaca_multi", "arena_bench_multi", "gsm8k_multi")
RESPONSES = 8  # of a prompt
LINES = (4, 15)  # of a response
EVERY = 40  # words, of which one is another in a near duplicate
FORM = """
Responses of {signs:,} characters on average, {responses} a prompt, in parquet; a tenth are equal to an earlier one but
for case and spacing, a tenth nearly equal. All responses are compared with all. Fitting reads the data once: normal form,
digests, runs of words to disk, MinHash, verified candidates; asking reads it again and drops. Memory: the process's peak
less what it held when everything was imported. One process on one core, whose seconds of work are told apart from those
that passed, because others may work on the machine too; each size is measured once.
"""
COLUMNS = (
    "responses",
    "fit, s",
    "ask, s",
    "of a core, s",
    "responses / s of a core",
    "peak, MB",
    "on disk, MB",
    "equal found",
    "near found",
    "others dropped",
)


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    fit: float  # seconds
    ask: float
    processor: float  # seconds of both that a processor worked; less than they took where others work too
    peak_mb: float
    disk_mb: float  # of runs of words
    signs: int  # characters of all responses
    equal: int  # dropped, of those that were planted
    near: int
    others: int  # dropped, of those that were not


@cache
def lines_of_real_answers() -> list[str]:
    """Lines of at least four words, each once.

    Raises:
        SystemExit: the data sets are not there.
    """
    found: dict[str, None] = {}
    for name in SETS:
        if not (kit.DATA / name).exists():
            raise SystemExit(f"{kit.DATA / name} is needed; FUSERL_SHARED names the folder that holds `data/`")
        for group in read_groups(kit.DATA / name, split="train", needs=Needs(text=False)):
            for response in group.responses:
                found |= dict.fromkeys(line for line in response.text.splitlines() if len(line.split()) >= 4)
    return list(found)


def text_of(number: int) -> str:
    """Response number n: of every ten, the last two repeat the first two."""
    kind = number % 10
    if kind < RESPONSES:
        random = Random(number)
        lines = lines_of_real_answers()
        return "\n".join(random.choices(lines, k=random.randint(*LINES)))
    original = text_of(number - RESPONSES)
    if kind == 8:
        return original.upper().replace(" ", "  ")
    told = original.split(" ")
    told[::EVERY] = [f"{word}s" if word.isalpha() else word for word in told[::EVERY]]
    return " ".join([*told, "and so on"])


def groups_of(count: int) -> Iterator[PromptGroup]:
    """So many responses, dealt out to prompts."""
    for prompt in range(count // RESPONSES):
        numbers = range(prompt * RESPONSES, (prompt + 1) * RESPONSES)
        responses = tuple(Response("source", text_of(number), place) for place, number in enumerate(numbers))
        yield PromptGroup(f"p{prompt:07d}", (Message("user", f"Question {prompt}?"),), responses)


def rule():
    """As it is configured, over all prompts."""
    cfg = OmegaConf.load(config_folder() / "rule" / "duplicate_responses.yaml")
    return instantiate(OmegaConf.merge(cfg, {"within": {"path": "fuserl.curation.duplicates.all_prompts"}}))


class Folder:
    """A data set that can be read more than once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[PromptGroup]:
        return iter_groups(self.path)


def dropped_of(one, groups) -> set[int]:
    """Numbers of the responses that the rule drops."""
    return {
        int(each.prompt_id[1:]) * RESPONSES + each.sample
        for group in groups
        for each in sifted(one, group)[1]
        if each.sample is not None
    }


def run(data: Path, threads: int) -> Run:
    """Fit and ask, in a fresh process."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    one, groups = rule(), Folder(data)
    kit.forget_peak(device)
    before = kit.memory_mb(device)
    started = time.process_time()
    fit = kit.timed(lambda: one.fit(groups), device)
    gone: set[int] = set()
    ask = kit.timed(lambda: gone.update(dropped_of(one, groups)), device)
    processor = time.process_time() - started
    peak = kit.peak_mb(device) - before
    kinds = [number % 10 for number in gone]
    sizes = [
        (len(r.text), len(words(normalised(r.text))))
        for g, _ in zip(groups, range(200), strict=False)
        for r in g.responses
    ]
    num = sum(1 for group in groups for _ in group.responses)
    signs, runs_of_words = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
    return Run(
        fit,
        ask,
        processor,
        peak,
        runs_of_words * num * 8 / 2**20,
        round(signs),
        kinds.count(8),
        kinds.count(9),
        sum(kind < 8 for kind in kinds),
    )


def require_equal_to_a_slow_search(count: int) -> None:
    """Over the first responses, all pairs are compared, on the runs of words themselves.

    Raises:
        AssertionError: the rule drops something else.
    """
    near = rule().near
    texts = [normalised(text_of(number)) for number in range(count)]
    runs_of = []
    numbers = []
    for text in texts:
        told = words(text)
        runs_of.append({tuple(told[place : place + near.ngram]) for place in range(max(1, len(told) - near.ngram + 1))})
        numbers.append(sorted(word for word in told if word.isdigit()))
    wanted = set()
    for later in range(count):
        for earlier in range(later):
            small, large = sorted((len(runs_of[earlier]), len(runs_of[later])))
            if small < near.threshold * large or numbers[earlier] != numbers[later]:
                continue
            if len(runs_of[earlier] & runs_of[later]) >= near.threshold * len(runs_of[earlier] | runs_of[later]):
                wanted.add(later)
    groups = list(groups_of(count))
    one = rule()
    one.fit(groups)
    found = dropped_of(one, groups)
    assert found <= wanted, f"{len(found - wanted)} responses are dropped that are like no other"
    missed = wanted - found
    assert not any(texts[number] == texts[number - RESPONSES] for number in missed), "an equal text was missed"
    assert len(missed) <= (1 - near.recall) * len(wanted), f"{len(missed)} of {len(wanted)} are missed"


def measure(responses: int, threads: int) -> Run:
    """One size."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_groups(groups_of(responses), data)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(run, data, threads).result()
    planted = responses // 10
    assert found.equal == planted, f"{found.equal} of {planted} equal texts are found"
    assert found.near >= rule().near.recall * planted, f"{found.near} of {planted} near duplicates are found"
    assert not found.others, f"{found.others} responses are dropped that are like no other"
    return found


def require_linear(sizes: list[int], runs: list[Run]) -> None:
    """Seconds and memory a response do not grow.

    Raises:
        AssertionError: they do.
    """
    for size, larger, one, other in zip(sizes, sizes[1:], runs, runs[1:], strict=False):
        growth = larger / size * SLACK
        assert other.processor <= one.processor * growth, f"{other.processor / one.processor:.1f} times the seconds"
        assert other.peak_mb <= one.peak_mb * growth, f"{other.peak_mb / one.peak_mb:.1f} times the memory"


def row(responses: int, found: Run) -> list[str]:
    """Of the table."""
    planted = responses // 10
    return [
        f"{responses:,}", f"{found.fit:.1f}", f"{found.ask:.1f}", f"{found.processor:.1f}",
        f"{responses / found.processor:,.0f}", f"{found.peak_mb:,.0f}", f"{found.disk_mb:,.0f}", f"{found.equal:,} of {planted:,}", f"{found.near:,} of {planted:,}", f"{found.others:,}",
    ]  # fmt: skip


def main() -> Path:
    """Check, measure each size, and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    parser.add_argument(
        "--responses", type=int, nargs="+", default=[100_000, 1_000_000], help="multiples of 40, ascending"
    )
    parser.add_argument(
        "--checked", type=int, default=2000, help="responses that are compared with each other, all with all"
    )
    arguments: argparse.Namespace = parser.parse_args()
    require_equal_to_a_slow_search(arguments.checked)
    found = []
    for responses in arguments.responses:
        found.append(measure(responses, arguments.threads))
        print(*row(responses, found[-1]), sep=" | ", flush=True)
    require_linear(arguments.responses, found)
    rows = [row(*each) for each in zip(arguments.responses, found, strict=True)]
    form = FORM.strip().format(signs=found[-1].signs, responses=RESPONSES)
    text = kit.header("Deduplicating", arguments, extra=["numpy"]) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    return kit.write("deduplicating", text, arguments)


if __name__ == "__main__":
    main()

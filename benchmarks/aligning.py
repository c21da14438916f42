"""Aligning two tokenisations: ours against the literal dynamic time warping, path for path.

    python -m benchmarks.aligning [--responses 1000]

Responses of `zeroeval_multi`, tokens of Llama-2 and of Qwen, one thread. The literal way is that of `tests/distributions/literal.py`,
written from the papers' formulas: a table in Python. It is timed twice: with its own edit distance, on the first responses, and
with rapidfuzz's compiled one for every cell, as the published code calls a compiled package. Ours computes everything: distances,
table, way back. Asserted: every path is equal, with tables as they come, with all of them halved on the first responses, and with texts
computed one at a time.
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from tiktoken import Encoding
from transformers.models.llama import LlamaTokenizerFast

from benchmarks import kit
from fuserl.distributions import dtw, marks, spans
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.offsets import align_spans
from fuserl.records.formats import read_groups

sys.path.append(str(kit.ROOT / "tests" / "distributions"))

import literal

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SLOWEST = 10  # responses that the literal way aligns with its own edit distance
HALVED = 50  # responses that are aligned again, tables halved down to a few cells
FORM = """
{responses:,} responses of `zeroeval_multi`, {source:,} tokens of Llama-2 and {target:,} of Qwen, {cells:.1f} M cells, one thread; medians of
{steps} repetitions after one to warm up. The literal way was timed on the first {few} responses (with its own edit distance: {slowest}),
its whole time is that of a cell times all cells. Load of the machine at the end: {load:.1f}. Paths: equal on all {equal} responses that both ways aligned, and with halved tables.
Memory above the tokens, one text of 4,000 and one of 16,000 tokens: {small:.1f} and {large:.1f} MB.
"""
COLUMNS = ("way", "ns a cell", "s", "tokens/s a core", "times ours")


def texts_of(count: int) -> list[str]:
    """The first responses, in order.

    Raises:
        SystemExit: the data set is not there.
    """
    path = kit.DATA / "zeroeval_multi"
    if not path.is_dir():
        raise SystemExit(f"{path} is needed; FUSERL_SHARED names the folder that holds `data/`")
    found: list[str] = []
    for group in read_groups(str(path), split="test", form="auto", on_bad_row="skip"):
        found += [response.text for response in group.responses]
        if len(found) >= count:
            break
    return found[:count]


def tokenizers() -> tuple[tuple[Callable, Any], tuple[Callable, Any]]:
    """(text -> ids, vocabulary) of Llama-2 and of Qwen."""
    folder = kit.DATA / "tokenizers"
    llama = LlamaTokenizerFast.from_pretrained(str(folder / "llama2"))
    lines = (folder / "qwen" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line.strip()}
    qwen = Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return (
        (lambda text: spans.encode(llama, text)[0], marks.of_tokenizer(llama)),
        (lambda text: qwen.encode(text, disallowed_special=()), marks.of_bytes(sorted(ranks, key=ranks.__getitem__))),
    )


def literal_paths(pairs: list, sides: tuple[Any, Any], distance: Callable) -> Iterator[list]:
    """What the papers write, text by text."""
    source, target = (side.bare for side in sides)
    for ours, theirs in pairs:
        yield literal.warp([source[token] for token in ours], [target[token] for token in theirs], distance)


def require_equal(found: list[Alignment], paths: list[list]) -> int:
    """How many paths are the same.

    Raises:
        AssertionError: one is another.
    """
    for number, (alignment, path) in enumerate(zip(found, paths, strict=False)):
        assert alignment.path().tolist() == [list(match) for match in path], f"response {number} has another path"
    return min(len(found), len(paths))


def peak_mb(size: int) -> float:
    """Of aligning one text of so many tokens."""
    rng = random.Random(0)
    source = [rng.choice("abcdefgh") * rng.randint(1, 3) for _ in range(size)]
    target = [word for word in source if rng.random() > 0.2]
    tracemalloc.start()
    dtw.dtw(source, target)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak


def halved(pairs: list, bare: tuple) -> list[Alignment]:
    """Every text by the way that long ones take."""
    together, largest = dtw.CELLS, dtw.LARGEST
    dtw.CELLS, dtw.LARGEST = 1, 64
    try:
        return dtw.dtw_many(pairs, *bare)
    finally:
        dtw.CELLS, dtw.LARGEST = together, largest


def main() -> None:
    """Check, measure, write the table."""
    parser = kit.options(__doc__, prompts=1, steps=3)
    parser.add_argument("--responses", type=int, default=1000)
    parser.add_argument("--few", type=int, default=100, help="responses that the literal way aligns")
    arguments: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(arguments.responses)
    (encode, source), (encode_other, target) = tokenizers()
    pairs = [(encode(text), encode_other(text)) for text in texts]
    bare = source.bare, target.bare
    found = dtw.dtw_many(pairs, *bare)
    device, few, slowest = torch.device("cpu"), pairs[: arguments.few], pairs[: min(SLOWEST, arguments.few)]
    paths = list(literal_paths(few, (source, target), Levenshtein.distance))
    equal = require_equal(found, paths)
    started = time.perf_counter()
    slow_paths = list(literal_paths(slowest, (source, target), literal.edit_distance))
    own = time.perf_counter() - started
    require_equal(found, slow_paths)
    require_equal(halved(pairs[:HALVED], bare), paths)
    require_equal([dtw.dtw_many([pair], *bare)[0] for pair in pairs[:HALVED]], paths)
    by_bytes = [
        (spans.token_spans(t, a, source), spans.token_spans(t, b, target))
        for t, (a, b) in zip(texts, pairs, strict=True)
    ]
    timed = kit.in_turn(
        lambda: dtw.dtw_many(pairs, *bare),
        lambda: list(literal_paths(few, (source, target), Levenshtein.distance)),
        arguments.steps,
        device,
    )
    offsets = kit.median(
        kit.timed(lambda: [align_spans(*one) for one in by_bytes], device) for _ in range(arguments.steps)
    )
    cells, few_cells, slow_cells = (sum(len(a) * len(b) for a, b in some) for some in (pairs, few, slowest))
    tokens = sum(len(a) + len(b) for a, b in pairs)
    ours = kit.median(timed.ours)
    ways = [
        ("literal, its own edit distance", own / slow_cells * cells),
        ("literal, compiled edit distance", kit.median(timed.theirs) / few_cells * cells),
        ("**ours**", ours),
        ("by bytes (another alignment)", offsets),
    ]
    rows = [
        (name, f"{s / cells * 1e9:,.1f}", f"{s:,.2f}", f"{tokens / s:,.0f}", f"{s / ours:,.1f}") for name, s in ways
    ]
    form = FORM.strip().format(
        responses=len(texts), source=sum(len(a) for a, _ in pairs), target=sum(len(b) for _, b in pairs), cells=cells / 1e6, steps=arguments.steps,
        load=os.getloadavg()[0], few=len(few), slowest=len(slowest), equal=equal, small=peak_mb(4000), large=peak_mb(16000) if arguments.size != "toy" else 0.0,
    )  # fmt: skip
    text = kit.header("Aligning", arguments, extra=("rapidfuzz", "numpy")) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    kit.write("aligning", text, arguments)


if __name__ == "__main__":
    main()

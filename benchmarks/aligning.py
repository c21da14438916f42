"""Aligning two tokenisations: ours against the literal dynamic time warping, path for path.

    python -m benchmarks.aligning [--responses 1000]

Responses of `zeroeval_multi`, tokens of Llama-2 and of Qwen, one thread. The literal way is that of `tests/distributions/literal.py`,
written from the papers' formulas: a table in Python. It is timed twice on all responses: once with its own edit distance, and in turn with
ours with rapidfuzz's compiled one for every cell, as the published code calls a compiled package. Ours computes everything: distances,
table, way back. Asserted: every path is equal, with tables as they come, with all of them halved on the first responses, and with texts
computed one at a time.
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from tiktoken import Encoding
from transformers.models.llama import LlamaTokenizerFast

from benchmarks import kit
from fuserl.distributions import dtw, marks, spans, store
from fuserl.distributions.alignment import Alignment
from fuserl.distributions.offsets import align_spans
from fuserl.records.formats import read_groups

sys.path.append(str(kit.ROOT / "tests" / "distributions"))

import literal

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HALVED = 50  # responses that are aligned again, tables halved down to a few cells
LONG = {"toy": (400, 1600), "tiny": (4000, 16000)}  # tokens of the texts whose memory is measured
FORM = """
{responses:,} responses of `zeroeval_multi`, {source:,} tokens of Llama-2 and {target:,} of Qwen, {cells:.1f} M cells, one thread. All ways aligned all
responses; ours and the literal way with the compiled distance in turn, medians of {steps} repetitions after one to warm up ({spread} times
ours); the literal way with its own distance once. Load of the machine at the end: {load:.1f}. Paths: **equal on all {equal:,} responses**, and on the
first {halved} with halved tables and one at a time. Peak memory above the tokens, one text of {short:,} and one of {long:,} tokens: {small:.1f} and
{large:.1f} MB, at 16 times the cells. A token of the store takes {bytes[0]} bytes (vocabulary of Llama-2) or {bytes[1]} (Qwen) at k = 10.
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
    for number, (alignment, path) in enumerate(zip(found, paths, strict=True)):
        assert alignment.path().tolist() == [list(match) for match in path], f"response {number} has another path"
    return len(paths)


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


def table_rows(
    seconds: Sequence[tuple[str, float]], cells: int, tokens: int, ours: float
) -> Iterator[tuple[str, str, str, str, str]]:
    """One a way."""
    for name, s in seconds:
        yield name, f"{s / cells * 1e9:,.1f}", f"{s:,.2f}", f"{tokens / s:,.0f}", f"{s / ours:,.1f}"


def main(given: Sequence[str] | None = None) -> None:
    """Check, measure, write the table."""
    parser = kit.options(__doc__, prompts=1, steps=3)
    parser.set_defaults(threads=1)
    parser.add_argument("--responses", type=int, default=1000)
    arguments: argparse.Namespace = parser.parse_args(given)
    torch.set_num_threads(1)
    texts, device = texts_of(arguments.responses), torch.device("cpu")
    (encode, source), (encode_other, target) = tokenizers()
    pairs = [(encode(text), encode_other(text)) for text in texts]
    sides, bare = (source, target), (source.bare, target.bare)
    found = dtw.dtw_many(pairs, *bare)
    paths: list[list] = []
    own = kit.timed(lambda: paths.extend(literal_paths(pairs, sides, literal.edit_distance)), device)
    equal = require_equal(found, paths)
    require_equal(halved(pairs[:HALVED], bare), paths[:HALVED])
    require_equal([dtw.dtw_many([pair], *bare)[0] for pair in pairs[:HALVED]], paths[:HALVED])
    by_bytes = [
        (spans.token_spans(t, a, source), spans.token_spans(t, b, target))
        for t, (a, b) in zip(texts, pairs, strict=True)
    ]
    timed = kit.in_turn(
        lambda: dtw.dtw_many(pairs, *bare),
        lambda: list(literal_paths(pairs, sides, Levenshtein.distance)),
        arguments.steps,
        device,
    )
    offsets = kit.median(
        kit.timed(lambda: [align_spans(*one) for one in by_bytes], device) for _ in range(arguments.steps)
    )
    num_source, num_target = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    cells, ours = sum(len(a) * len(b) for a, b in pairs), kit.median(timed.ours)
    ways = [
        ("literal, its own edit distance", own),
        ("literal, compiled edit distance", kit.median(timed.theirs)),
        ("**ours**", ours),
        ("by bytes (another alignment)", offsets),
    ]
    short, long = LONG["toy" if arguments.size == "toy" else "tiny"]
    form = FORM.strip().format(
        responses=len(texts), source=num_source, target=num_target, cells=cells / 1e6, steps=arguments.steps,
        spread=timed.spread, load=os.getloadavg()[0], equal=equal, halved=min(HALVED, len(pairs)), short=short, long=long,
        small=peak_mb(short), large=peak_mb(long), bytes=[store.record(10, len(side)).itemsize for side in sides],
    )  # fmt: skip
    rows = table_rows(ways, cells, num_source + num_target, ours)
    text = kit.header("Aligning", arguments, extra=("rapidfuzz", "numpy")) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    kit.write("aligning", text, arguments)


if __name__ == "__main__":
    main()

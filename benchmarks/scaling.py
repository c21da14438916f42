"""Cost against the number of responses and against the prompt's length, beside the token arithmetic.

    python -m benchmarks.scaling [--device cuda --dtype bf16 --size 1b]

Forward and backward of the log-probs of random tokens in three ways: packs with shared prompts (ours); every response with
its own prompt through the same code, unpadded (which isolates the prompts); and padded forwards with full logits, a few
sequences at a time. Asserted before each time: loss and gradients of the three agree.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import flops, kit
from benchmarks.groups import Lengths
from benchmarks.models import random_model
from benchmarks.ways import forward_backward, likelihood, require_same
from fuserl.models.kernels import choose, needs_of
from fuserl.models.scoring import Packed, Padded, rows_within
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.tokens.store import TokenStore, TokenWriter

COUNTS, LENGTHS = (2, 4, 8, 16), (64, 128, 256, 512, 1024)
FORM = """
Forward and backward of the summed log-probs of {prompts} prompts with G responses of {response} tokens, random tokens, medians of
{steps} interleaved repetitions. G(P + R) / (P + GR) counts tokens through the layers; FLOPs counts the layers, attention and the head,
which sees trained tokens alone in both. Apart: separate sequences through the same code. Padded: separate padded forwards, {padded}
sequences at a time, full logits. The difference is relative, of loss and gradients, the largest of the three ways.
"""
COLUMNS = (
    "P / R / G", "G(P+R) / (P+GR)", "by FLOPs", "packs, s", "apart, s", "**apart / packs**", "padded, s", "padded / packs",
    "largest difference",
)  # fmt: skip


def store_of(folder: Path, prompt: int, response: int, responses: int, prompts: int, vocabulary: int) -> TokenStore:
    """Groups of random tokens; also every response as a group of its own, behind them."""
    rng = np.random.default_rng(0)
    writer = TokenWriter(folder / f"{prompt}-{response}-{responses}", ["s"])

    def add(name: str, ids: np.ndarray, branches: list[np.ndarray]) -> None:
        answers = tuple(Response("s", "x", number, 0.0) for number in range(len(branches)))
        writer.add(PromptGroup(name, (Message("user", "x"),), answers), ids, branches, [0] * len(branches))

    drawn = [
        [rng.integers(3, vocabulary, size).astype(np.int32) for size in (prompt, *[response] * responses)]
        for _ in range(prompts)
    ]
    for number, (ids, *branches) in enumerate(drawn):
        add(f"whole {number}", ids, branches)
    for number, (ids, *branches) in enumerate(drawn):
        for branch in branches:
            add(f"apart {number}", ids, [branch])
    return writer.close()


def packs_of(store: TokenStore, rows: range, at_a_time: int, device: torch.device) -> list[GroupBatch]:
    """Neighbouring groups, so many a pack."""
    valid = np.array(store.valid)
    return [
        collate(store, list(rows[at : at + at_a_time]), valid).to(device) for at in range(0, len(rows), at_a_time)
    ]  # fmt: skip


def measure(
    model: Any, store: TokenStore, size: Lengths, arguments: argparse.Namespace, device: torch.device
) -> list[str]:
    """A row of the table."""
    prompts, responses = arguments.prompts, len(size.responses)
    apart = range(prompts, len(store))
    packed = Packed(choose("auto", device, needs_of(model)), rows_within(arguments.logits, model))
    ways = [
        partial(forward_backward, way, model, packs_of(store, rows, at_a_time, device), likelihood)
        for way, rows, at_a_time in (
            (packed, range(prompts), prompts),
            (packed, apart, len(apart)),
            (Padded(), apart, arguments.padded),
        )
    ]  # fmt: skip
    gap = require_same(model, ways, arguments.dtype)
    sides = [kit.in_turn(ways[0], way, arguments.steps, device) for way in ways[1:]]
    shape = flops.products_of(arguments.size)
    together, single = flops.shared([size]), flops.separate([size], head_passes=3)
    by_flops = flops.Work(single.decoder, single.attended, together.head, 3).flops(shape) / together.flops(shape)
    return [
        f"{size.prompt} / {size.responses[0]} / {responses}", f"{single.decoder / together.decoder:.2f}", f"{by_flops:.2f}",
        f"{kit.median(sides[0].ours):.3f}", f"{kit.median(sides[0].theirs):.3f}", f"**{sides[0].ratio:.2f}**",
        f"{kit.median(sides[1].theirs):.3f}", f"{sides[1].ratio:.2f}", f"{gap:.0e}",
    ]  # fmt: skip


def points(arguments: argparse.Namespace) -> list[Lengths]:
    """Both curves; their common point once."""
    by_count = [Lengths(arguments.prompt, (arguments.response,) * count) for count in arguments.counts]
    by_length = [Lengths(length, (arguments.response,) * 8) for length in arguments.lengths]
    return list(dict.fromkeys(by_count + by_length))


def main() -> Path:
    """Measure all points and write the table."""
    parser = kit.options(__doc__, prompts=1, steps=5)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="responses of a prompt")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a prompt, with 8 responses")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt on the curve of counts")
    parser.add_argument("--response", type=int, default=128, help="tokens of a response")
    parser.add_argument("--padded", type=int, default=2, help="sequences of a padded forward")
    parser.add_argument("--logits", type=float, default=0.5, help="GiB of logits at a time, of packs")
    arguments = parser.parse_args()
    device = kit.device_of(arguments.device)
    torch.set_num_threads(arguments.threads)
    model = random_model(arguments.size, kit.DTYPES[arguments.dtype], device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in points(arguments):
            store = store_of(
                Path(folder),
                size.prompt,
                arguments.response,
                len(size.responses),
                arguments.prompts,
                model.config.vocab_size,
            )
            rows.append(measure(model, store, size, arguments, device))
            print(*rows[-1], sep=" | ", flush=True)
    form = FORM.strip().format(
        prompts=arguments.prompts, response=arguments.response, steps=arguments.steps, padded=arguments.padded
    )
    text = (
        kit.header("Cost against responses and prompt length", arguments) + f"\n{form}\n\n" + kit.table(COLUMNS, rows)
    )
    return kit.write("scaling", text, arguments)


if __name__ == "__main__":
    main()

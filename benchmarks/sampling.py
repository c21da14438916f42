"""Sampling with the model in memory: answers a second of the engine `transformers`, against transformers' `generate`.

    python -m benchmarks.sampling [--prompts 3000] [--samples 4] [--batch 1024]

The miniature's target answers the miniature's prompts, some 5 tokens each, 24 at most, at temperature 1. `generate` gets
batches of so many rows in two ways: prompts of one length together, which is its best case, and prompts as they come,
padded. The engine's time includes templates, tokens, seeds and texts; that of `generate` the tokens alone. Asserted
first: greedy answers of all three are the same.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import kit
from fuserl.models.load import load_policy
from fuserl.records.formats import read_groups
from fuserl.records.schema import Message
from fuserl.sources.protocol import Answer, Request, Sampling
from fuserl.sources.source import Source
from fuserl.sources.transformers import TransformersEngine

MINIATURE = kit.ROOT / "src" / "fuserl" / "miniature"
NEW, STOP, PAD = 24, 2, 0  # tokens at most; ids of the miniature's tokenizer
COLUMNS = ("against `generate`", "its answers/s", "the engine's", "engine / generate", "smallest-largest")


def prompts_of(count: int) -> list[tuple[Message, ...]]:
    """The miniature's, of all splits."""
    files = (MINIATURE / "data" / f"{split}.jsonl.gz" for split in ("train", "validation", "test"))
    return list(islice((group.prompt for file in files for group in read_groups(str(file))), count))


def requests(prompts: Sequence[tuple[Message, ...]], samples: int, temperature: float) -> list[Request]:
    """Every prompt's, in order."""
    sampling = Sampling(NEW, temperature)
    return [
        Request(f"{number}-{sample}", prompt, sampling, seed=number * samples + sample)
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def by_length(rows: Sequence[list[int]], batch: int) -> Iterator[list[int]]:
    """Numbers of rows of one length, so many at a time."""
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[len(row)].append(number)
    for numbers in groups.values():
        yield from (numbers[at : at + batch] for at in range(0, len(numbers), batch))


def as_they_come(rows: Sequence[list[int]], batch: int) -> Iterator[list[int]]:
    """So many at a time."""
    yield from (list(range(at, min(at + batch, len(rows)))) for at in range(0, len(rows), batch))


@torch.inference_mode()
def generated(model: Any, rows: Sequence[list[int]], parts: Iterator[list[int]], sample: bool) -> list[list[int]]:
    """`generate` on batches of rows, padded on the left; token ids with the stop."""
    found: list[list[int]] = [[] for _ in rows]
    drawing = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0) if sample else dict(do_sample=False)
    for numbers in parts:
        longest = max(len(rows[number]) for number in numbers)
        ids = torch.tensor([[PAD] * (longest - len(rows[n])) + rows[n] for n in numbers], device=model.device)
        out = model.generate(
            ids, attention_mask=(ids != PAD).long(), max_new_tokens=NEW, eos_token_id=STOP, pad_token_id=PAD, **drawing
        )
        for number, answer in zip(numbers, out[:, longest:].tolist(), strict=True):
            found[number] = answer[: answer.index(STOP) + 1] if STOP in answer else answer
    return found


def main() -> Path:
    """Check, measure, write the table."""
    parser = kit.options(__doc__, prompts=3000, steps=3)
    parser.set_defaults(size="miniature")
    parser.add_argument("--samples", type=int, default=4, help="a prompt")
    parser.add_argument("--batch", type=int, default=1024, help="rows decoded together")
    arguments: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = kit.device_of(arguments.device)
    source = Source("target", str(MINIATURE / "target"), Sampling(NEW), dtype="float32")
    prompts = prompts_of(60 if arguments.size == "toy" else arguments.prompts)
    engine = TransformersEngine(source, batch_tokens=arguments.batch * 2 * NEW, device=arguments.device)
    plain = load_policy(source.path, dtype="float32").to(device).eval()
    plain.set_attn_implementation("sdpa")
    template, table = engine.rendering.template, []
    require_equal(engine, plain, prompts, arguments.batch)
    rows = [template.encode_prompt(prompt) for prompt in prompts for _ in range(arguments.samples)]
    asked = requests(prompts, arguments.samples, temperature=1.0)
    for name, parts in (("prompts of one length together", by_length), ("as they come, padded", as_they_come)):
        pair = kit.in_turn(
            lambda: list(engine.answer(iter(asked))),
            lambda parts=parts: generated(plain, rows, parts(rows, arguments.batch), sample=True),
            1 if arguments.size == "toy" else arguments.steps,
            device,
        )
        theirs, ours = (len(rows) / kit.median(seconds) for seconds in (pair.theirs, pair.ours))
        table.append([name, f"{theirs:,.0f}", f"{ours:,.0f}", f"{pair.ratio:.2f}", pair.spread])
    form = f"{len(prompts):,} prompts x {arguments.samples} samples, {arguments.batch:,} rows together, greedy answers equal."
    text = kit.header("Sampling with the model in memory", arguments) + f"\n{form}\n\n" + kit.table(COLUMNS, table)
    return kit.write("sampling", text, arguments)


def require_equal(engine: TransformersEngine, plain: Any, prompts: Sequence[tuple[Message, ...]], batch: int) -> None:
    """Greedy texts of the engine and of `generate`, both ways.

    Raises:
        AssertionError: they differ.
    """
    rows = [engine.rendering.template.encode_prompt(prompt) for prompt in prompts]
    results = engine.answer(iter(requests(prompts, 1, temperature=0.0)))
    ours = {result.key: result.text for result in results if isinstance(result, Answer)}
    for parts in (by_length, as_they_come):
        for number, ids in enumerate(generated(plain, rows, parts(rows, batch), sample=False)):
            assert engine.rendering.text(prompts[number], ids) == ours[f"{number}-0"], f"prompt {number} differs"


if __name__ == "__main__":
    main()

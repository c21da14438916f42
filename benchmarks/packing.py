"""Packs with shared prompts against separate padded forwards: equality first, then interleaved times.

    python benchmarks/packing.py [--out benchmarks/results]

Forward and backward of the log-probs of K responses to P prompts on a random Llama; the baseline is `score_padded`, the
oracle of the tests: every response with its own prompt, padded to the longest.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fuserl.models import attention, load
from fuserl.models.scoring import score_batch, score_padded
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.tokens.collate import collate
from fuserl.tokens.store import TokenWriter

SHAPES = ((128, 128), (256, 128), (512, 128), (128, 256))  # prompt, response tokens
RESPONSES, PROMPTS, REPEATS, VOCABULARY = 8, 2, 5, 8192


def model():
    """Four layers, 256 wide."""
    attention.register()
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=2048,
        )
    )  # fmt: skip
    load._use_our_attention(made)
    return made


def batch(prompt: int, response: int, folder: Path):
    """A pack of random tokens."""
    rng = np.random.default_rng(0)
    writer = TokenWriter(folder / f"{prompt}-{response}", ["s"])
    for number in range(PROMPTS):
        group = PromptGroup(
            str(number), (Message("user", "x"),), tuple(Response("s", "x", n, float(n)) for n in range(RESPONSES))
        )
        draw = [rng.integers(3, VOCABULARY, size).astype(np.int32) for size in (prompt, *[response] * RESPONSES)]
        writer.add(group, draw[0], draw[1:], [0] * RESPONSES)
    store = writer.close()
    return collate(store, list(range(PROMPTS)), np.array(store.valid))


def seconds(score, made, pack) -> float:
    """One forward and backward."""
    started = time.perf_counter()
    made.zero_grad()
    score(made, pack).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    made, lines = model(), []
    with tempfile.TemporaryDirectory() as folder:
        for prompt, response in SHAPES:
            pack = batch(prompt, response, Path(folder))
            with torch.no_grad():
                gap = float((score_batch(made, pack) - score_padded(made, pack)).abs().max())
            assert gap < 5e-2, f"packed and padded differ by {gap} nats over {response} tokens"
            ours, theirs = [], []
            for _ in range(REPEATS):
                ours.append(seconds(score_batch, made, pack))
                theirs.append(seconds(score_padded, made, pack))
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            lines.append(
                f"| {prompt} / {response} | {statistics.median(theirs):.2f} | {statistics.median(ours):.2f} | {ratio:.2f} | {gap:.0e} |"
            )
            print(lines[-1], flush=True)
    head = (
        f"# Packs with shared prompts against separate padded forwards\n\n{date.today()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, fp32, random Llama (4 layers, 256 wide, vocabulary {VOCABULARY}), "
        f"{PROMPTS} prompts of {RESPONSES} responses, forward and backward, {REPEATS} interleaved pairs, medians.\n\n"
        "| prompt / response tokens | padded, s | packed, s | ratio | largest difference of a log-prob, nats |\n|---|---|---|---|---|\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"packing_cpu{torch.get_num_threads()}_{date.today()}.md"
    path.write_text(head + "\n".join(lines) + "\n")
    print(path)


if __name__ == "__main__":
    main()

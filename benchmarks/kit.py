"""What the benchmarks share: real groups, a random model on disk, the machine's own rate, results as Markdown."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fuserl.records.formats import read_groups
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import write_groups
from fuserl.tokens.templates import load_template

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FUSERL_SHARED", ROOT.parent / "shared")) / "data"
RESULTS = ROOT / "benchmarks" / "results"
SAMPLES = 2  # of a source: the responses of a real prompt are dealt into sources of two


def tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "tokenizers/gpt2/tokenizer.json"),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def save_model(folder: Path, *, layers: int = 6, width: int = 384, heads: int = 6, inner: int = 1024) -> Path:
    """A random Llama with GPT-2's vocabulary and tied embeddings."""
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=50257, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=8192, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def dealt(name: str, count: int, *, responses: int = 8, max_length: int = 2048, document: int = 0) -> list[PromptGroup]:
    """Real groups of exactly so many responses, dealt into sources of two, every source with a better and a worse.

    Args:
        document: tokens of other prompts' answers put before the question (long prompts).
    """
    template = load_template(tokenizer(), chat_template="plain")
    words = template.tokenizer
    source = read_groups(str(DATA / name), split="train", form="auto", on_bad_row="skip")
    filler = _documents(name, document, words) if document else None
    found: list[PromptGroup] = []
    for group in source:
        if len(group.responses) < responses:
            continue
        if filler:
            question = group.prompt[-1].content
            group = replace(group, prompt=(Message("user", f"{next(filler)}\n\n{question}"),))
        texts = [response.text for response in group.responses[:responses]]
        length = len(words(template.render_prompt(group.prompt))["input_ids"])
        if (
            length + max(len(words(text)["input_ids"]) for text in texts) + 1 > max_length
            or len(set(texts)) < responses
        ):
            continue
        dealt_out = [
            Response(f"s{number // SAMPLES}", text, number % SAMPLES, float(number % SAMPLES == 0), None)
            for number, text in enumerate(texts)
        ]
        found.append(replace(group, responses=tuple(dealt_out)))
        if len(found) == count:
            break
    return found


def _documents(name: str, tokens: int, words: PreTrainedTokenizerFast) -> Iterator[str]:
    """Texts of about so many tokens, made of the set's own answers."""
    text: list[int] = []
    for group in read_groups(str(DATA / name), split="train", form="auto", on_bad_row="skip"):
        text += words(group.responses[0].text + "\n")["input_ids"]
        while len(text) >= tokens:
            yield words.decode(text[:tokens])
            text = text[tokens:]


def write_ours(groups: Iterable[PromptGroup], folder: Path) -> Path:
    """Our format."""
    write_groups(groups, folder)
    return folder


def write_pairs(groups: Iterable[PromptGroup], path: Path) -> Path:
    """TRL's preference format with the prompt rendered, so that both train on the same token ids."""
    template = load_template(tokenizer(), chat_template="plain")
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            prompt = template.render_prompt(group.prompt)
            for chosen, rejected in zip(group.responses[::SAMPLES], group.responses[1::SAMPLES], strict=True):
                file.write(json.dumps({"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text}) + "\n")
    return path


def write_completions(groups: Iterable[PromptGroup], path: Path) -> Path:
    """TRL's prompt-completion format."""
    template = load_template(tokenizer(), chat_template="plain")
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            for response in group.responses:
                row = {"prompt": template.render_prompt(group.prompt), "completion": response.text}
                file.write(json.dumps(row) + "\n")
    return path


def batched(items: Sequence, size: int) -> Iterator[list]:
    """Neighbours, `size` at a time."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def matmul_rate(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s over products [m, k] x [k, n], each as often as listed; the best of five."""
    operands = [(torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)) for m, k, n in shapes]
    best = min(seconds(lambda: [a @ b for a, b in operands]) for _ in range(5))
    return sum(2 * m * k * n for m, k, n in shapes) / best


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> float:
    """As `statistics.median`."""
    return statistics.median(values)


def hardware() -> str:
    """A short name for file names: processor and cores, or the GPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-").lower()
    return f"cpu{os.cpu_count()}"


def header(title: str, *, what: str) -> str:
    """Title, date, commit, machine, versions, and what was measured."""
    import transformers

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return (
        f"# {title}\n\n{date.today()}, commit {commit.stdout.strip() or 'unknown'}, {processor}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}.\n\n{what}\n\n"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(name: str, text: str) -> Path:
    """benchmarks/results/NAME_HARDWARE_DATE.md"""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}_{hardware()}_{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(path)
    return path

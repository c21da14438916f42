"""`fuserl merge merge=sce` against mergekit's SCE: seconds and peak memory on models of 1 GB.

    python -m benchmarks.merging [--gb 1.0] [--experts 3]

A random Llama in bfloat16 and experts that differ from it by noise, in shards, from disk to disk. Every measurement is a
process of its own, the two sides in turn. Asserted: both sides write the same model. mergekit computes in float32 for this,
as ours always does; the row in bfloat16 is its usual setting, whose result is another.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import kit
from fuserl.merging.checkpoint import Checkpoint
from fuserl.merging.shards import Form, ShardWriter, file_names, shards, write_index
from fuserl.settings import compose

SELECT = 0.1  # share of the positions
SHARD = 400_000_000  # bytes of the models that are made
NOISE = 0.02  # of an expert, as large as the weights: below a mean energy of 1e-6 mergekit's η would be equal
STRAY = 1e-4  # share of elements that may differ: equal variances at the threshold, of which each side takes others
WIDTHS = {"toy": (64, 512), "tiny": (1024, 32_000)}  # hidden size, vocabulary
COLUMNS = ("side", "s", "peak, MB", "peak / largest tensor x models")
FORM = """
{models} models of {gb:.2f} GB in bfloat16 ({tensors} tensors, the largest {largest:.0f} MB), `select` {select}; reading, merging, writing.
Ours also digests every file that it reads. The medians of {steps} runs a side, in turn. Peak: the process's resident memory, mapped
files included, less what it held when all was imported. Other elements than mergekit's in float32: {stray:.1e} of all, at positions whose
variances are equal. Median of mergekit's seconds over ours, both in float32: **{ratio:.2f}** ({spread}).
"""


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    seconds: float
    peak_mb: float


def make(folder: Path, gb: float, experts: int, size: str) -> list[Path]:
    """Base and experts."""
    width, vocabulary = WIDTHS[size]
    inner = 11 * width // 4
    layer, ends = 4 * width**2 + 3 * width * inner, 2 * width * vocabulary
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_attention_heads=width // 32,
        num_hidden_layers=max(1, round((gb * 5e8 - ends) / layer)), dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        names = {
            name: tuple(weight.shape) for name, weight in AutoModelForCausalLM.from_config(config).named_parameters()
        }
    forms = [Form(name, shape, torch.bfloat16) for name, shape in sorted(names.items())]
    paths = [folder / name for name in ("base", *(f"expert{number}" for number in range(experts)))]
    for number, path in enumerate(paths):
        config.save_pretrained(path)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(path)
        parts = shards(forms, SHARD if size == "tiny" else SHARD // 1000)
        for name, part in zip(file_names(len(parts)), parts, strict=True):
            with ShardWriter(path / name, part) as writer:
                for form in part:
                    writer.write(form, [_weights(form, number)])
        write_index(path, parts)
    return paths


def _weights(form: Form, number: int) -> torch.Tensor:
    """Of the base (0), or of an expert; the same whenever they are asked for."""
    random = torch.Generator().manual_seed(sum(form.name.encode()))
    weight = torch.randn(form.shape, generator=random).mul_(0.02)
    if number:
        random.manual_seed(number * 1000 + sum(form.name.encode()))
        weight += torch.randn(form.shape, generator=random).mul_(NOISE)
    return weight


def ours(models: list[Path], out: Path, threads: int) -> Run:
    """`fuserl merge`, in a fresh process."""
    from fuserl.merging.merge import merge

    experts = ",".join(map(str, models[1:]))
    given = ["merge=sce", "merge.variant=mergekit", f"merge.select={SELECT}", "reload_gb=0", f"output={out}"]
    cfg = compose("merge", [f"base={models[0]}", f"experts=[{experts}]", *given])
    return _measured(lambda: merge(cfg), threads)


def theirs(models: list[Path], out: Path, threads: int, dtype: str) -> Run:
    """mergekit's own command, in a fresh process."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    given = {
        "merge_method": "sce", "base_model": str(models[0]), "models": [{"model": str(path)} for path in models[1:]],
        "parameters": {"select_topk": SELECT}, "dtype": dtype, "out_dtype": "bfloat16",
    }  # fmt: skip
    config, options = MergeConfiguration.model_validate(given), MergeOptions(copy_tokenizer=False, quiet=True)
    return _measured(lambda: run_merge(config, str(out), options), threads)


def _measured(work, threads: int) -> Run:
    torch.set_num_threads(threads)
    torch.zeros(8).add_(1)  # threads and allocators are there
    device = torch.device("cpu")
    before = kit.memory_mb(device)
    kit.forget_peak(device)
    started = time.perf_counter()
    work()
    return Run(time.perf_counter() - started, kit.peak_mb(device) - before)


def in_a_process(side, *arguments) -> Run:
    """What it measures where nothing ran before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(side, *arguments).result()


def require_equal(one: Path, other: Path) -> float:
    """Both folders hold the same tensors, but for stray elements.

    Returns:
        The share of those.

    Raises:
        AssertionError: they do not.
    """
    mine, yours = Checkpoint(one, "ours"), Checkpoint(other, "theirs")
    assert mine.places.keys() == yours.places.keys(), "other tensors"
    stray, elements = 0, 0
    for name, place in mine.places.items():
        assert (place.shape, place.dtype) == (yours.places[name].shape, yours.places[name].dtype), name
        a, b = mine.read(name).flatten(), yours.read(name).flatten()
        for x, y in zip(a.split(1 << 22), b.split(1 << 22), strict=True):
            gap = (x.float() - y.float()).abs()
            stray += int((gap > 2**-7 * y.float().abs() + 1e-6).sum())  # a last bit of bfloat16
        elements += a.numel()
    assert stray <= STRAY * elements, f"{stray} of {elements} elements differ"
    return stray / elements


def rows(found: dict[str, list[Run]], bound_mb: float) -> Iterable[list[str]]:
    """Of the table: medians of each side."""
    for side, runs in found.items():
        peak = kit.median(run.peak_mb for run in runs)
        yield [side, f"{kit.median(run.seconds for run in runs):.1f}", f"{peak:,.0f}", f"{peak / bound_mb:.2f}"]


def main() -> Path:
    """Check, measure in turn, and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=1)
    parser.add_argument("--gb", type=float, default=1.0, help="of one model")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the models are made, gone afterwards")
    arguments: argparse.Namespace = parser.parse_args()
    threads = arguments.threads
    found: dict[str, list[Run]] = {"ours": [], "mergekit, float32": [], "mergekit, bfloat16": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        models = make(Path(name), arguments.gb, arguments.experts, arguments.size)
        stray = 0.0
        for step in range(arguments.steps):
            outs = [Path(name) / f"out{side}" for side in range(3)]
            sides = [(ours, "ours", ()), (theirs, "mergekit, float32", ("float32",))]
            if step == 0:
                sides.append((theirs, "mergekit, bfloat16", ("bfloat16",)))
            for (side, title, more), out in zip(sides, outs, strict=False):
                found[title].append(in_a_process(side, models, out, threads, *more))
                print(title, found[title][-1], flush=True)
            stray = require_equal(outs[0], outs[1])
            for out in outs:
                shutil.rmtree(out, ignore_errors=True)
        base = Checkpoint(models[0], "base")
        sizes = [torch.Size(place.shape).numel() * place.dtype.itemsize for place in base.places.values()]
    pair = kit.Pair([run.seconds for run in found["ours"]], [run.seconds for run in found["mergekit, float32"]])
    form = FORM.strip().format(
        models=len(models), gb=sum(sizes) / 1e9, tensors=len(sizes), largest=max(sizes) / 2**20, select=SELECT,
        steps=arguments.steps, stray=stray, ratio=pair.ratio, spread=pair.spread,
    )  # fmt: skip
    table = kit.table(COLUMNS, rows(found, max(sizes) / 2**20 * len(models)))
    text = kit.header("Merging", arguments, extra=["mergekit", "safetensors"]) + f"\n{form}\n\n{table}"
    return kit.write("merging", text, arguments)


if __name__ == "__main__":
    main()

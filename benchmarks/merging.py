"""`fuserl merge` against mergekit on the same job: seconds and peak memory on models of 1 GB.

    python -m benchmarks.merging [--gb 1.0] [--experts 3] [--methods sce linear ties]

A random Llama in bfloat16 and experts that differ from it by noise, in shards, from disk to disk. Every measurement is a
process of its own, the two sides in turn, and which one comes first changes. Asserted: both sides write the same model. `sce` is
ours (`variant=mergekit`); `linear` and `ties` call mergekit's function for one tensor behind our reading and writing. mergekit computes
in float32 for this, as ours always does; the row in bfloat16 is its usual setting, whose result is another.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import kit
from fuserl.merging.checkpoint import Checkpoint
from fuserl.merging.shards import Form, ShardWriter, file_names, shards, write_index
from fuserl.settings import compose

SELECT = 0.1  # share of the positions
SHARD = 400_000_000  # bytes of the models that are made
NOISE = 0.02  # of an expert, as large as the weights: below a mean energy of 1e-6 mergekit's η would be equal
TIED = (
    1e-5  # relative gap of variances that are equal but for rounding: of those at the threshold each side takes others
)
BOUND = 1.5  # times largest tensor x models: what a merge may hold
WIDTHS = {"toy": (64, 512), "tiny": (1024, 32_000)}  # hidden size, vocabulary
OURS, THEIRS, USUAL = "ours", "mergekit, float32", "mergekit, bfloat16"
COLUMNS = ("method", "side", "s", "peak, MB", f"of {BOUND} x tensor x models", "mergekit's s / ours, in pairs")
FORM = """
Base and {experts} experts, {gb:.2f} GB each in bfloat16 ({tensors} tensors, the largest {largest:.1f} MB); reading, merging, writing. `sce` selects
{select}, the others have the defaults of `conf/merge`. Ours also digests every file that it reads. The medians of {steps} pairs, in turn.
Peak: the process's resident memory, mapped files included, less what it held when all was imported. Bound: {bound_factor} x {largest:.1f} MB x
{models} models (the base is one) = **{bound:,.1f} MB**. Elements that differ from mergekit's in float32: {strays}; all of them at positions whose
variance is that of the threshold.
"""


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Method:
    """The same job for both commands."""

    ours: Sequence[str]  # overrides of `fuserl merge`
    theirs: dict[str, Any]  # of mergekit's configuration
    of_each: dict[str, Any]  # of every expert there
    with_base: bool = True
    ties: bool = False  # whether it chooses among equal numbers

    def configuration(self, models: list[Path], dtype: str) -> dict[str, Any]:
        """For mergekit."""
        of_each = {name: value or 1 / (len(models) - 1) for name, value in self.of_each.items()}
        experts = [{"model": str(path), "parameters": of_each} for path in models[1:]]
        base = {"base_model": str(models[0])} if self.with_base else {}
        return {"models": experts, "dtype": dtype, "out_dtype": "bfloat16", **base, **self.theirs}


METHODS = {
    "sce": Method(
        ["merge=sce", "merge.variant=mergekit", f"merge.select={SELECT}"],
        {"merge_method": "sce", "parameters": {"select_topk": SELECT}}, {}, ties=True,
    ),
    "linear": Method(
        ["merge=linear"], {"merge_method": "linear", "parameters": {"normalize": True}}, {"weight": None}, with_base=False
    ),
    "ties": Method(
        ["merge=ties"], {"merge_method": "ties", "parameters": {"normalize": True}}, {"weight": 0.2, "density": 0.6}
    ),
}  # fmt: skip


def make(folder: Path, gb: float, experts: int, size: str) -> list[Path]:
    """Base and experts."""
    width, vocabulary = WIDTHS[size]
    inner = 11 * width // 4
    layer, ends = 4 * width**2 + 3 * width * inner, 2 * width * vocabulary
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_attention_heads=width // 32,
        num_hidden_layers=max(1, round((gb * 5e8 - ends) / layer)), dtype="bfloat16",
        architectures=[LlamaForCausalLM.__name__],
    )  # fmt: skip
    with torch.device("meta"):
        names = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).named_parameters()}
    forms = [Form(name, shape, torch.bfloat16) for name, shape in sorted(names.items())]
    paths = [folder / name for name in ("base", *(f"expert{number}" for number in range(experts)))]
    for number, path in enumerate(paths):
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


def ours(method: str, models: list[Path], out: Path, threads: int) -> Run:
    """`fuserl merge`, in a fresh process."""
    from fuserl.merging.merge import merge

    experts = ",".join(map(str, models[1:]))
    given = [f"base={models[0]}", f"experts=[{experts}]", f"output={out}", "reload_gb=0"]
    cfg = compose("merge", [*given, *METHODS[method].ours])
    return _measured(lambda: merge(cfg), threads)


def theirs(method: str, models: list[Path], out: Path, threads: int, dtype: str) -> Run:
    """mergekit's own command, in a fresh process."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(METHODS[method].configuration(models, dtype))
    options = MergeOptions(copy_tokenizer=False, quiet=True)
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


def require_equal(one: Path, other: Path, models: Sequence[Path] = ()) -> float:
    """Both folders hold the same tensors, but for elements whose variance over the experts is that of the threshold.

    Args:
        models: base and experts, of methods that choose by variance; none: every element is the same, to the last bit of
            bfloat16. With them that bit is the base's where the result is smaller: which of equal elements are chosen moves η.

    Returns:
        The share of elements that differ.

    Raises:
        AssertionError: the folders hold something else.
    """
    mine, yours = Checkpoint(one, "ours"), Checkpoint(other, "theirs")
    assert mine.places.keys() == yours.places.keys(), "other tensors"
    differing, elements = 0, 0
    for name, place in mine.places.items():
        assert (place.shape, place.dtype) == (yours.places[name].shape, yours.places[name].dtype), name
        a, b = mine.read(name).flatten(), yours.read(name).flatten()
        base = Checkpoint(models[0], "base").read(name).flatten() if models else b
        pieces = zip(*(one.split(1 << 22) for one in (a, b, base)), strict=True)
        stray = torch.cat([_different(*some) for some in pieces])
        count = int(stray.count_nonzero())
        assert models or not count, f"{count} of {len(stray)} elements differ in `{name}`"
        if count:
            variances = _variances(models, name, stray)
            gap = float(variances.max() - variances.min())
            assert gap <= TIED * float(variances.max()), f"{count} of {len(stray)} elements differ in `{name}`"
        differing, elements = differing + count, elements + len(stray)
    return differing / elements


def _different(one: Tensor, other: Tensor, base: Tensor) -> Tensor:
    """By more than a last bit of bfloat16."""
    return (one.float() - other.float()).abs() > 2**-7 * torch.maximum(other.abs(), base.abs()).float() + 1e-6


def _variances(models: Sequence[Path], name: str, where: Tensor) -> Tensor:
    """Over the experts, at some elements of a tensor."""
    base, *experts = (Checkpoint(path, path.name).read(name).flatten()[where].double() for path in models)
    return torch.stack([expert - base for expert in experts]).var(0, correction=0)


def measured(
    method: str, models: list[Path], folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, list[Run]], float]:
    """Runs of every side, and the share of elements that differ."""
    found: dict[str, list[Run]] = {OURS: [], THEIRS: [], USUAL: []}
    outs, share = {side: folder / f"out{number}" for number, side in enumerate(found)}, 0.0
    for step in range(arguments.steps):
        turns = [OURS, THEIRS] if step % 2 == 0 else [THEIRS, OURS]
        for side in [*turns, *([USUAL] if step == 0 else [])]:
            work, more = (ours, ()) if side == OURS else (theirs, (side.rpartition(" ")[2],))
            found[side].append(in_a_process(work, method, models, outs[side], arguments.threads, *more))
            print(method, side, found[side][-1], flush=True)
        share = max(share, require_equal(outs[OURS], outs[THEIRS], models if METHODS[method].ties else ()))
        for out in outs.values():
            shutil.rmtree(out, ignore_errors=True)
    return found, share


def rows(method: str, found: dict[str, list[Run]], bound_mb: float) -> Iterable[list[str]]:
    """Of the table: medians of each side."""
    pair = kit.Pair([run.seconds for run in found[OURS]], [run.seconds for run in found[THEIRS]])
    for side, runs in found.items():
        peak = kit.median(run.peak_mb for run in runs)
        ratio = f"**{pair.ratio:.2f}** ({pair.spread})" if side == OURS else ""
        seconds = kit.median(run.seconds for run in runs)
        yield [method, side, f"{seconds:.1f}", f"{peak:,.0f}", f"{peak / bound_mb:.2f}", ratio]


def main() -> Path:
    """Check, measure in turn, and write the table."""
    parser = kit.options(__doc__, prompts=0, steps=3)
    parser.add_argument("--gb", type=float, default=1.0, help="of one model")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=["sce"])
    parser.add_argument("--folder", type=Path, default=None, help="where the models are made, gone afterwards")
    arguments: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        models = make(Path(name), arguments.gb, arguments.experts, arguments.size)
        base = Checkpoint(models[0], "base")
        sizes = [torch.Size(place.shape).numel() * place.dtype.itemsize for place in base.places.values()]
        found = {method: measured(method, models, Path(name), arguments) for method in arguments.methods}
    bound = BOUND * max(sizes) / 2**20 * len(models)
    form = FORM.strip().format(
        experts=arguments.experts, models=len(models), gb=sum(sizes) / 1e9, tensors=len(sizes), largest=max(sizes) / 2**20,
        select=SELECT, steps=arguments.steps, bound_factor=BOUND, bound=bound,
        strays=", ".join(f"{method} {share:.1e} of all" for method, (_, share) in found.items()),
    )  # fmt: skip
    lines = [line for method, (runs, _) in found.items() for line in rows(method, runs, bound)]
    text = kit.header("Merging", arguments, extra=["mergekit", "safetensors"]) + f"\n{form}\n\n"
    return kit.write("merging", text + kit.table(COLUMNS, lines), arguments)


if __name__ == "__main__":
    main()

"""What the scripts share: their options, the machine in words, medians of interleaved runs, results as Markdown."""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FUSERL_SHARED", ROOT.parent / "shared")) / "data"
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ("torch", "transformers", "lightning")
SLACK = 1.25  # times linear, of what must not outgrow the data
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def options(about: str | None, *, prompts: int, steps: int) -> argparse.ArgumentParser:
    """The options every script takes.

    Args:
        prompts: default of `--prompts`, prompts an optimiser step.
        steps: default of `--steps`, timed repetitions.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--size", default="tiny", help="toy, tiny, 0.5b, 1b or 3b: random weights of that shape")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of a processor")
    parser.add_argument("--prompts", type=int, default=prompts, help="an optimiser step")
    parser.add_argument("--steps", type=int, default=steps, help="timed repetitions, after one to warm up")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table")
    return parser


def device_of(device: str) -> torch.device:
    """The device of `--device`.

    Raises:
        SystemExit: there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible; leave out `--device cuda`")
    return torch.device(device)


@dataclass(frozen=True)
class Pair:
    """Two ways timed in turn, seconds a repetition."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median over repetitions of theirs / ours: what disturbs the machine for a while disturbs both."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def spread(self) -> str:
        """Smallest and largest ratio."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return f"{min(ratios):.2f}-{max(ratios):.2f}"


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], times: int, device: torch.device) -> Pair:
    """Time two ways alternately, once each to warm up; which one comes first changes every time."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, times):
        for side in (0, 1) if number % 2 else (1, 0):
            seconds = timed((ours, theirs)[side], device)
            if number >= 0:
                found[side].append(seconds)
    return Pair(*found)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, a GPU's queue included."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(values: Iterable[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def memory_mb(device: torch.device) -> float:
    """What the process holds now: of the GPU, or resident after freed pages have gone back to the system."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    give_back_freed()
    return _status("VmRSS")


def forget_peak(device: torch.device) -> None:
    """Start measuring the peak anew; where the system does not allow it, the peak is the process's since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """The most that was held since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def give_back_freed() -> None:
    """glibc keeps freed memory for later; a baseline must not hold what set-up left behind."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def hardware(device: torch.device, threads: int) -> str:
    """A short name for files: `cpu2`, `h100x1`."""
    if device.type != "cuda":
        return f"cpu{threads}"
    words = torch.cuda.get_device_name(device).lower().replace("nvidia", "").split()
    return f"{words[0] if words else 'gpu'}x1"


def header(title: str, arguments: argparse.Namespace, *, extra: Sequence[str] = (), model: bool = True) -> str:
    """Title, date, commit, machine and versions.

    Args:
        extra: further packages whose versions matter.
        model: whether `--size` and `--dtype` say what is measured.
    """
    device = torch.device(arguments.device)
    versions = ", ".join(f"{name} {version(name)}" for name in (*MEASURED, *extra))
    of_model = f", model `{arguments.size}` in {arguments.dtype}" if model else ""
    machine = _machine(device, arguments.threads)
    return f"# {title}\n\n{date.today()}, commit {_commit()}, {machine}, {versions}{of_model}.\n"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        " with changes" if git("status", "--short", "src") else ""
    )


def _machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {threads} of {os.cpu_count()} cores"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def write(name: str, text: str, arguments: argparse.Namespace) -> Path:
    """OUT/NAME_HARDWARE_DATE.md, also printed; other sizes than `tiny` stand in the name."""
    size = "" if arguments.size == "tiny" else f"_{arguments.size}"
    machine = hardware(torch.device(arguments.device), arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{name}{size}_{machine}_{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(path)
    return path

"""The verb `merge`: a base and experts in, one model folder out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.merging.check import require_readable
from fuserl.merging.checkpoint import Weights
from fuserl.merging.configured import configured
from fuserl.merging.deltas import Inputs, finite
from fuserl.merging.folder import FREE, MergeFolder, copy_about, sha256, write_config
from fuserl.merging.matching import Entry, copied, entries
from fuserl.merging.opening import opened
from fuserl.merging.report import (
    Coefficients,
    card,
    lineage,
    manifest,
    peak_memory_mb,
    summary_of,
    table_of,
    write_coefficients,
)
from fuserl.merging.shards import Form, ShardWriter, file_names, shards, write_index
from fuserl.merging.units import Energies
from fuserl.merging.weighted import Method
from fuserl.settings import plain
from fuserl.terminal import bar, say, say_table

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Job:
    """What is merged, and how."""

    base: Weights
    experts: Sequence[Weights]
    method: Method
    entries: Sequence[Entry]
    dtype: torch.dtype | None  # of all that is written; None: each tensor's own in the base

    def forms(self) -> list[Form]:
        """Of all tensors that are written."""
        return [
            Form(one.name, one.shape, self.dtype if self.dtype and one.dtype.is_floating_point else one.dtype)
            for one in self.entries
        ]

    def inputs(self, entry: Entry) -> Inputs:
        """One tensor of each model.

        Raises:
            FuserlError: one has NaN or infinity in it.
        """
        labels = [expert.label for expert in self.experts]
        found = Inputs(entry.name, entry.of(self.base), [entry.of(expert) for expert in self.experts], labels)
        found.require_finite()
        return found


def merge(cfg: DictConfig) -> Path:
    """Merge as `conf/merge.yaml` says; a finished folder is left alone.

    Returns:
        The folder, which is a Hugging Face model folder with `manifest.json` and `coefficients.csv` in it.

    Raises:
        FuserlError: settings are wrong, or the models do not fit together; nothing has been written then.
    """
    given, started = plain(cfg), time.monotonic()
    method: Method = configured(given["merge"]["method"])
    models = opened(str(given["base"]), given["experts"])
    method.require(len(models) - 1)
    folder = MergeFolder(given["output"] or Path("runs") / settings.digest("merge", given, FREE))
    if folder.finished(given, models):
        say(f"{folder.path} is finished already; nothing to do")
        return folder.path
    base, *experts = models
    job = Job(base, experts, method, entries(base, experts), _dtype(given["merge"]["dtype"]))
    _say_start(job, given, folder.path)
    with folder.working() as part, ThreadPoolExecutor(1) as hashing, _a_core_for_digests():
        folder.require_room(sum(form.bytes for form in job.forms()))
        digests = {file: hashing.submit(sha256, file) for model in models for file in model.files()}
        try:
            coefficients = write(job, part, largest=_bytes(given, "shard_gb"))
        except BaseException:
            hashing.shutdown(cancel_futures=True)
            raise
        summary = _finish(job, part, given, coefficients, digests, started)
    name = str(given["merge"]["name"])
    if summary:
        say_table(table_of(summary, title=f"{name}: {len(experts)} experts", num_tensors=len(coefficients)))
    say(f"done: {folder.path} ({time.monotonic() - started:,.1f} s)")
    return folder.path


@contextmanager
def _a_core_for_digests() -> Iterator[None]:
    """torch's threads wait for each other after every piece: one more than there are free cores costs many times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write(job: Job, part: Path, *, largest: int) -> Coefficients:
    """All tensors into files of at most so many bytes, one of each model in memory at a time.

    Returns:
        Tensor -> coefficients of the experts.

    Raises:
        FuserlError: a tensor has NaN or infinity, or does not fit the dtype.
    """
    by_name, found = {entry.name: entry for entry in job.entries}, {}
    files = shards(job.forms(), largest)
    units = _units(job)
    with bar("merging", lambda: len(by_name)) as told:
        for name, forms in zip(file_names(len(files)), files, strict=True):
            with ShardWriter(part / name, forms) as writer:
                for form in forms:
                    coefficients = _write_one(job, by_name[form.name], form, units, writer)
                    if form.dtype.is_floating_point:
                        found[form.name] = coefficients
                    told(len(found), form.name)
    write_index(part, files)
    return found


def _write_one(
    job: Job, entry: Entry, form: Form, units: Mapping[str, Energies], writer: ShardWriter
) -> Sequence[float] | None:
    if not entry.dtype.is_floating_point:
        writer.write(form, [copied(entry, job.base, job.experts)])
        return None
    merged = job.method.merge(job.inputs(entry), units.get(job.method.pool(entry.name) or ""))
    writer.write(form, _fitting(merged.pieces, form))
    return merged.coefficients()


def _units(job: Job) -> dict[str, Energies]:
    """Energies of units that are larger than a tensor: read before anything is merged."""
    wanted = [one for one in job.entries if one.dtype.is_floating_point and job.method.pool(one.name) is not None]
    found: dict[str, Energies] = {}
    with bar("measuring", lambda: len(wanted)) as told:
        for number, entry in enumerate(wanted, 1):
            unit = job.method.pool(entry.name) or ""
            energies = job.method.energies(job.inputs(entry))
            found[unit].add(energies) if unit in found else found.update({unit: energies})
            told(number, entry.name)
    return found


def _fitting(pieces: Iterable[Tensor], form: Form) -> Iterator[Tensor]:
    """Converted.

    Raises:
        FuserlError: a number is too large for the dtype.
    """
    for piece in pieces:
        converted = piece.to(form.dtype)
        if not finite(converted):
            raise FuserlError(
                f"a number of `{form.name}` does not fit {str(form.dtype).removeprefix('torch.')}",
                where=f"`{form.name}`",
                hint="`merge.dtype=bfloat16` or `merge.dtype=float32` holds larger ones",
            )
        yield converted


def _finish(
    job: Job,
    part: Path,
    given: Mapping[str, Any],
    coefficients: Coefficients,
    digests: Mapping[Path, Future[str]],
    started: float,
) -> dict[str, dict[str, float]]:
    """What stands beside the weights; then the whole is read back."""
    names = [expert.label for expert in job.experts]
    copy_about(job.base.folder, part, job.base.config, given["merge"]["dtype"])
    checked = require_readable(part, job.forms(), reload_gb=given["reload_gb"])
    write_coefficients(part / "coefficients.csv", coefficients, names)
    write_config(part, given)
    models = lineage([job.base, *job.experts], {file: digest.result() for file, digest in digests.items()})
    (part / "README.md").write_text(card(given, models, str(given["merge"]["name"])), encoding="utf-8")
    summary = summary_of(coefficients, names)
    measured = {
        "checked": checked,
        "tensors": len(job.entries),
        "parameters": sum(torch.Size(one.shape).numel() for one in job.entries),
        "bytes": sum(form.bytes for form in job.forms()),
        "coefficients": summary,
        "seconds": time.monotonic() - started,
        "peak_memory_mb": peak_memory_mb(),
    }
    (part / "manifest.json").write_text(manifest(given, models, measured), encoding="utf-8")
    return summary


def _say_start(job: Job, given: Mapping[str, Any], path: Path) -> None:
    size = sum(form.bytes for form in job.forms()) / 1e9
    names = ", ".join(expert.label for expert in job.experts)
    say(
        f"{given['merge']['name']}: {names} into {job.base.label}: {len(job.entries):,} tensors, {size:,.2f} GB, {path}"
    )


def _dtype(name: Any) -> torch.dtype | None:
    """Raises: FuserlError: there is no such dtype."""
    if name is not None and not (isinstance(name, str) and name in DTYPES):
        raise FuserlError(
            f"there is no dtype `{name}`", where="`merge.dtype`", hint=f"one of {', '.join(DTYPES)}; or null"
        )
    return getattr(torch, name) if name else None


def _bytes(given: Mapping[str, Any], key: str) -> int:
    """Raises: FuserlError: the setting is no size."""
    size = given[key]
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size <= 0:
        raise FuserlError(f"`{key}` is {size!r}", where=f"`{key}`", hint="a size in GB, above 0")
    return int(size * 1e9)

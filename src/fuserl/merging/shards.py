"""Safetensors written as tensors come: a header that is known beforehand, then bytes; no shard is ever held in memory.

The library's own writer wants all tensors of a file at once. The format is a length (8 bytes, little-endian), a JSON
header padded to 8 bytes, and the tensors one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fuserl.merging.checkpoint import DTYPES, INDEX, SINGLE

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Form:
    """Of a tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """On the disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def shards(forms: Sequence[Form], largest: int) -> list[list[Form]]:
    """Cut into files of at most so many bytes, a larger tensor alone in its own; wide numbers first, which keeps all aligned."""
    found: list[list[Form]] = [[]]
    size = 0
    for form in forms:
        if found[-1] and size + form.bytes > largest:
            found.append([])
            size = 0
        found[-1].append(form)
        size += form.bytes
    return [sorted(part, key=lambda form: -form.dtype.itemsize) for part in found]


def file_names(num_shards: int) -> list[str]:
    """As transformers looks for them."""
    if num_shards == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{num_shards:05d}.safetensors" for number in range(1, num_shards + 1)]


class ShardWriter:
    """One file; its tensors must come in the order of `forms`."""

    def __init__(self, path: Path, forms: Sequence[Form]) -> None:
        self.path, self.forms = path, forms
        self._file: BinaryIO = path.open("wb")
        self._file.write(header(forms))

    def write(self, form: Form, pieces: Iterable[Tensor]) -> None:
        """All elements of a tensor, in pieces; each is converted to the tensor's dtype."""
        written = 0
        for piece in pieces:
            flat = piece.reshape(-1).to(form.dtype).contiguous()
            self._file.write(memoryview(flat.view(torch.uint8).numpy()))
            written += flat.nbytes
        assert written == form.bytes, f"{form.name}: {written} bytes of {form.bytes}"

    def close(self) -> None:
        """Wait until the disk has it all."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def header(forms: Sequence[Form]) -> bytes:
    """Length and header of a file with these tensors in this order."""
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for form in forms:
        end = start + form.bytes
        content[form.name] = {"dtype": NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(folder: Path, parts: Sequence[Sequence[Form]]) -> None:
    """Which file holds which tensor, where there are several."""
    if len(parts) == 1:
        return
    names = file_names(len(parts))
    content = {
        "metadata": {"total_size": sum(form.bytes for part in parts for form in part)},
        "weight_map": {form.name: name for name, part in zip(names, parts, strict=True) for form in part},
    }
    (folder / INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")

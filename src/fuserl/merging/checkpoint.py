"""Weights of a model folder: names, shapes and dtypes from the files' headers, a tensor when it is asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fuserl.errors import FuserlError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "LICENSE*"]  # of the hub
NOT_SAFE = "pickled weights can run code and are refused"
DTYPES = {  # of safetensors' headers; others (8-bit floats, packed integers) are quantised and cannot be added up
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and its form."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@runtime_checkable
class Weights(Protocol):
    """One model's tensors, one at a time."""

    label: str  # short, unique among the models of a merge
    folder: Path
    config: dict[str, Any]  # config.json
    places: dict[str, Place]  # forms are those of what `read` gives

    def read(self, name: str) -> Tensor:
        """A tensor; whoever asks drops it before the next one."""
        ...

    def files(self) -> list[Path]:
        """All that decides the weights, for digests."""
        ...


class Checkpoint:
    """A folder with `config.json` and safetensors, in one file or in shards.

    Raises:
        FuserlError: it has no such files, one of them is broken or missing, or its weights are quantised.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.config = read_json(folder / "config.json")
        self.places = headers(_weight_files(folder))
        if quantised := self.config.get("quantization_config"):
            raise FuserlError(
                f"the weights are quantised ({quantised.get('quant_method', 'by an unknown method')})",
                where=str(folder),
                hint="merge the model that it was made from, and quantise the result",
            )
        self._require_listed()

    def read(self, name: str) -> Tensor:
        """Mapped from the file: pages come when they are looked at and go with the tensor."""
        return read_tensor(self.places[name].file, name)

    def files(self) -> list[Path]:
        """Weights and configuration."""
        return [self.folder / "config.json", *sorted({place.file for place in self.places.values()})]

    def _require_listed(self) -> None:
        """Raises: FuserlError: the index names tensors that its files do not have."""
        if not (self.folder / INDEX).exists():
            return
        listed = read_json(self.folder / INDEX)["weight_map"]
        if lost := sorted(listed.keys() - self.places.keys()):
            raise FuserlError(
                f"{len(lost)} tensors of the index are in no file, the first: `{lost[0]}`",
                where=str(self.folder / INDEX),
                hint="the folder is not whole: copy or download it again",
            )


def resolved(path: str, revision: str | None = None) -> Path:
    """The folder of a path, or of a hub name: downloaded if it can be, else as the local cache has it.

    Raises:
        FuserlError: there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    hint = "give a folder with config.json and safetensors, or a hub name"
    if folder.exists() or not HUB_NAME.fullmatch(path):
        raise FuserlError("there is no such model folder", where=str(path), hint=hint)
    from huggingface_hub import snapshot_download

    errors = []
    for offline in (False, True):
        try:
            return Path(snapshot_download(path, revision=revision, allow_patterns=WANTED, local_files_only=offline))
        except Exception as error:  # the hub's, the network's and the cache's are many
            errors.append((str(error).strip() or type(error).__name__).splitlines()[0][:160])
    raise FuserlError(
        f"the model is no folder here, the hub does not give it, and the cache does not have it ({errors[0]})",
        where=path,
        hint=hint,
    )


def headers(files: list[Path]) -> dict[str, Place]:
    """What the files hold, without reading it.

    Raises:
        FuserlError: a file is broken, holds numbers that cannot be merged, or repeats a tensor.
    """
    found: dict[str, Place] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                    form = tensors.get_slice(name)
                    if name in found:
                        raise FuserlError(
                            f"the tensor `{name}` is in two files", where=str(file), hint=f"also in {found[name].file}"
                        )
                    found[name] = Place(file, tuple(form.get_shape()), _dtype(form.get_dtype(), name, file))
        except (SafetensorError, OSError, ValueError) as error:
            raise FuserlError(
                f"the file is no whole safetensors file ({error})", where=str(file), hint="copy or download it again"
            ) from error
    return found


def read_tensor(file: Path, name: str) -> Tensor:
    """Raises: FuserlError: the file has gone or changed since its header was read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise FuserlError(
            f"the tensor `{name}` cannot be read ({error})", where=str(file), hint="has the file changed meanwhile?"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises: FuserlError: it is missing, or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except (OSError, ValueError) as error:
        raise FuserlError(
            f"`{path.name}` cannot be read ({error})", where=str(path.parent), hint="give a Hugging Face model folder"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        mapped = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(mapped.values())) if isinstance(mapped, dict) and mapped else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise FuserlError(
                "the index does not name files of its folder", where=str(folder / INDEX), hint="download it again"
            )
        files = [folder / name for name in names]
        if missing := [file.name for file in files if not file.exists()]:
            raise FuserlError(
                f"{len(missing)} of {len(files)} weight files are missing, the first: `{missing[0]}`",
                where=str(folder),
                hint="copy or download them",
            )
        return files
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if others:
        raise FuserlError(
            f"the weights are in `{others[0]}`, not in safetensors: {NOT_SAFE}",
            where=str(folder),
            hint="convert them where you trust them: load the model and `save_pretrained(folder)`",
        )
    raise FuserlError(
        "the folder has no weights", where=str(folder), hint=f"it needs `{SINGLE}`, or shards with `{INDEX}`"
    )


def _dtype(name: str, tensor: str, file: Path) -> torch.dtype:
    if name not in DTYPES:
        raise FuserlError(
            f"the tensor `{tensor}` is stored as {name}, which cannot be merged",
            where=str(file),
            hint="convert the model to bfloat16, float16 or float32 first",
        )
    return DTYPES[name]

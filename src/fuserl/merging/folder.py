"""The folder of `merge`: a model folder that is whole or absent, tied to its settings and to what its inputs held."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fuserl import settings
from fuserl.errors import FuserlError
from fuserl.merging.checkpoint import Weights, read_json
from fuserl.records.journal import BusyFolder, locked
from fuserl.records.store import file_digest

FREE = ("output", "shard_gb", "reload_gb")  # settings that do not change the model
BLOB = re.compile(r"[0-9a-f]{64}")  # the hub's cache names large files by their SHA-256
COPIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*", "*.model", "*.tiktoken", "preprocessor_config.json", "processor_config.json", "LICENSE*",
)  # fmt: skip


class MergeFolder:
    """Where the model comes to stand; beside it, a part folder while it is made."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.part = self.path.with_name(self.path.name + ".part")
        self.manifest = self.path / "manifest.json"

    def finished(self, config: Mapping[str, Any], models: Sequence[Weights]) -> bool:
        """Whether this very merge is here already.

        Raises:
            FuserlError: the folder holds something else.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return False
        hint = "give another folder with `output=DIR`, or delete this one to start anew"
        manifest = read_json(self.manifest) if self.manifest.exists() else {}
        if manifest.get("verb") != "merge":
            raise FuserlError(
                "the folder holds something that `fuserl merge` did not make", where=str(self.path), hint=hint
            )
        before, now = manifest["settings"], json.loads(json.dumps(settings.decisive(config, FREE), default=str))
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            shown = [
                key for key in changed if not key.startswith("merge.method.")
            ] or changed  # those follow from others
            lines = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in shown[:5])
            raise FuserlError(
                f"this folder holds a merge with other settings ({lines})", where=str(self.path), hint=hint
            )
        for model in models:
            if not _unchanged(model, manifest["models"].get(model.label, {}).get("files", {})):
                raise FuserlError(
                    f"the weights of `{model.label}` have changed since this folder was made from them",
                    where=str(self.path),
                    hint=hint,
                )
        return True

    @contextmanager
    def working(self) -> Iterator[Path]:
        """An empty part folder; it takes the folder's name when all is done, and goes when the work cannot be done.

        A killed process leaves a part folder, which the next one empties.

        Raises:
            FuserlError: another process is at work, or nothing can be written here.
        """
        with locked(self.part):
            for old in self.part.iterdir():
                if old.name != ".lock":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            try:
                if self.manifest.exists():  # a process that held the folder until now
                    raise BusyFolder(
                        "another process has just finished this folder",
                        where=str(self.path),
                        hint="run the same command again, which finds it finished",
                    )
                yield self.part
            except FuserlError:
                shutil.rmtree(self.part, ignore_errors=True)
                raise
            (self.part / ".lock").unlink()
            os.rename(self.part, self.path)

    def require_room(self, num_bytes: int) -> None:
        """Raises: FuserlError: the disk has less."""
        free = shutil.disk_usage(self.part).free
        if free < num_bytes:
            raise FuserlError(
                f"the model takes {num_bytes / 1e9:,.1f} GB, the disk has {free / 1e9:,.1f} GB left",
                where=str(self.path),
                hint="make room, or give a folder on another disk with `output=DIR`",
            )


def copy_about(base: Path, part: Path, config: Mapping[str, Any], dtype: str | None) -> None:
    """Configuration, tokenizer, chat template and generation settings of the base; the `dtype` of a converted model."""
    config = dict(config) | ({"dtype": dtype} if dtype else {})
    if dtype:
        config.pop("torch_dtype", None)
    (part / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    for pattern in COPIED:
        for path in base.glob(pattern):
            if path.is_file() and path.suffix not in (".py", ".safetensors"):
                shutil.copyfile(path, part / path.name)
    if (templates := base / "additional_chat_templates").is_dir():
        shutil.copytree(templates, part / templates.name)


def write_config(part: Path, config: Mapping[str, Any]) -> None:
    """`config.yaml`: the settings, resolved."""
    (part / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")


def stamp(file: Path) -> dict[str, Any]:
    """Size and date of a file, which tell without reading that it is the same."""
    status = file.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def sha256(file: Path) -> str:
    """Of its content; read off its name where it is a blob of the hub's cache."""
    name = file.resolve().name
    return name if BLOB.fullmatch(name) else file_digest(file)


def _unchanged(model: Weights, before: Mapping[str, Mapping[str, Any]]) -> bool:
    """By the dates of its files, or by their contents where dates differ."""
    for file in model.files():
        known = before.get(str(file))
        if known is None or known["bytes"] != file.stat().st_size:
            return False
        if known["mtime_ns"] != file.stat().st_mtime_ns and known["sha256"] != sha256(file):
            return False
    return True

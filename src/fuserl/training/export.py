"""`model/`: a plain Hugging Face folder, read back and compared before it is called done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fuserl.errors import FuserlError


def export_model(model: Any, tokenizer: Any, folder: Path, *, card: str) -> None:
    """Write safetensors, tokenizer, chat template and card; LoRA is merged. Whole or absent.

    Raises:
        FuserlError: the written model does not give the logits of the one in memory.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    plain = model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder.with_name("adapter"), safe_serialization=True)
        tokenizer.save_pretrained(folder.with_name("adapter"))
        plain = model.merge_and_unload()
    plain.save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    (part / "README.md").write_text(card, encoding="utf-8")
    _compare(plain, part)
    finished(part, folder)


def finished(part: Path, folder: Path) -> None:
    """What was written gets its name."""
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


@torch.no_grad()
def _compare(model: Any, folder: Path) -> None:
    """Logits of a fixed row of tokens, in memory and read back."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    probe = torch.arange(16, device=device)[None] * 7 % model.config.vocab_size
    was_training = model.training
    written, held = again(probe).logits, model.eval()(probe).logits
    model.train(was_training)
    require_the_same(written, held, dtype, folder)


def require_the_same(written: Tensor, held: Tensor, dtype: torch.dtype, folder: Path) -> None:
    """Raises: FuserlError: logits of the written model are not those of the one in memory."""
    gap, scale = float((written - held).abs().max()), float(held.abs().max())
    if not gap <= 50 * torch.finfo(dtype).eps * max(scale, 1.0):
        raise FuserlError(
            f"the exported model differs from the trained one by {gap:.2e} in its logits",
            where=str(folder),
            hint="keep the checkpoint and report this with your config.yaml: the architecture loses something on disk",
        )

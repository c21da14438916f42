"""The merged model is read back before it is called done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fuserl.errors import FuserlError
from fuserl.merging.checkpoint import Checkpoint
from fuserl.merging.matching import skeleton
from fuserl.merging.shards import Form

PROBE = 8  # tokens of the forward pass


def require_readable(folder: Path, forms: Sequence[Form], *, reload_gb: float) -> str:
    """Names, shapes and dtypes on the disk are the planned ones; then transformers loads it, or its shapes alone.

    Args:
        reload_gb: models up to this size are loaded and answer once.

    Returns:
        How it was checked, for the manifest.

    Raises:
        FuserlError: the folder does not hold the model that was to be written.
    """
    there = {name: (place.shape, place.dtype) for name, place in Checkpoint(folder, "merged").places.items()}
    planned = {form.name: (form.shape, form.dtype) for form in forms}
    if there != planned:
        different = sorted(name for name in there.keys() | planned.keys() if there.get(name) != planned.get(name))
        raise _broken(folder, f"`{different[0]}` is {there.get(different[0])}, not {planned.get(different[0])}")
    if sum(form.bytes for form in forms) <= reload_gb * 1e9:
        _require_an_answer(folder)
        return "reloaded: every tensor found its place, and the logits of a forward pass are finite"
    model = skeleton(folder)
    for name, wanted in model.state_dict().items():
        if name in there and there[name][0] != tuple(wanted.shape):
            raise _broken(folder, f"`{name}` is {list(there[name][0])}, its configuration wants {list(wanted.shape)}")
    return (
        "names, shapes and dtypes on the disk; shapes against the configuration; too large to be loaded (`reload_gb`)"
    )


@torch.no_grad()
def _require_an_answer(folder: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    showed = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        model, told = loaded
        lost: Any = told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"]
    except Exception as error:  # of every architecture its own
        raise _broken(folder, str(error).splitlines()[0][:200]) from error
    finally:
        if showed:
            logging.enable_progress_bar()
    if lost:
        raise _broken(folder, f"{sorted(lost)[0]} has no place or no weight")
    tokens = torch.arange(PROBE)[None] % model.get_input_embeddings().num_embeddings
    logits = model.eval()(tokens).logits
    if not logits.isfinite().all():
        raise FuserlError(
            "the merged model's logits are not finite",
            where=str(folder),
            hint="do base and experts answer? A wider `merge.dtype` (float32) shows whether numbers overflow",
        )


def _broken(folder: Path, what: str) -> FuserlError:
    return FuserlError(
        f"the merged model is not what it should be: {what}",
        where=str(folder),
        hint="report this with the settings: the architecture loses something on disk",
    )

"""Reward models of transformers: loading them, and the number that stands for an answer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fuserl.errors import FuserlError


def sequence_classification(
    path: str, *, revision: str | None, dtype: torch.dtype, trust_remote_code: bool
) -> nn.Module:
    """An `AutoModelForSequenceClassification`, all of whose weights came from the checkpoint.

    Raises:
        FuserlError: it cannot be loaded, or has weights that the checkpoint lacks: a head of random numbers scores
            nothing.
    """
    from transformers import AutoModelForSequenceClassification

    settings = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    model, missing = loaded(AutoModelForSequenceClassification, path, **settings)
    if missing:
        raise FuserlError(
            f"the checkpoint has no `{missing[0]}`, so it is no reward model of this kind",
            where=str(path),
            hint="ArmoRM's head is of its own kind: `reward=armorm`; others may need `trust_remote_code=true`",
        )
    return with_exact_head(model)


def loaded(auto: Any, path: str, **settings: Any) -> tuple[nn.Module, list[str]]:
    """(the model, names of weights that its checkpoint lacks). Safetensors only.

    Raises:
        FuserlError: it cannot be loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what the checkpoint lacks is an error here, not a warning
    try:
        model, told = auto.from_pretrained(path, use_safetensors=True, output_loading_info=True, **settings)
    except Exception as error:
        raise _not_loadable(path, error) from error
    return model.eval(), sorted(told["missing_keys"])


def config_of(path: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The configuration of a reward model; no weights are read.

    Raises:
        FuserlError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loadable(path, error) from error


def _not_loadable(path: str, error: Exception) -> FuserlError:
    """Transformers, huggingface_hub and safetensors raise what they like."""
    text = str(error)
    if "trust_remote_code" in text:
        hint = (
            "it wants to run code from its repository: `trust_remote_code=true` lets it, once you have read that code"
        )
    elif "safetensors" in text:
        hint = "convert its weights to safetensors; pickled weights can run code and are refused"
    else:
        hint = "give a Hugging Face folder, or a hub name (which needs a network)"
    first = text.splitlines()[0][:160] if text else type(error).__name__
    return FuserlError(f"the reward model cannot be loaded ({first})", where=path, hint=hint)


def with_exact_head(model: nn.Module) -> nn.Module:
    """The model with its head in float32 over a body in any dtype.

    bfloat16 knows 8 bits: numbers near 16 would come in steps of an eighth, and answers would tie that do not.
    """
    body = getattr(model, "base_model_prefix", "")
    for name, head in model.named_children():
        if name != body and any(True for _ in head.parameters()):
            head.float()
            head.register_forward_pre_hook(_in_float32)
    return model


def _in_float32(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, Tensor) and one.is_floating_point() else one for one in given)


def logit(output: Any) -> Float[Tensor, " B"]:
    """The only logit, of models with one label.

    Raises:
        FuserlError: there are several.
    """
    logits = output.logits
    if logits.ndim == 2 and logits.shape[1] == 1:
        return logits[:, 0]
    raise FuserlError(
        f"the model has {logits.shape[-1]} labels, which say no single number",
        where="`read`",
        hint="`read._target_=fuserl.rewards.heads.label_logit read.label=N` takes one of them",
    )


def label_logit(output: Any, *, label: int) -> Float[Tensor, " B"]:
    """One label's logit, of models with several.

    Raises:
        FuserlError: there is no such label.
    """
    if not 0 <= label < output.logits.shape[-1]:
        raise FuserlError(
            f"the model has {output.logits.shape[-1]} labels, no number {label}",
            where="`read.label`",
            hint="count from 0",
        )
    return output.logits[:, label]


def score_attribute(output: Any) -> Float[Tensor, " B"]:
    """`output.score`, of models with code of their own.

    Raises:
        FuserlError: the output has no such field.
    """
    score = getattr(output, "score", None)
    if score is None:
        raise FuserlError(
            "the model's output has no field `score`",
            where="`read`",
            hint="`read._target_=fuserl.rewards.heads.logit` for models with one logit",
        )
    return score.reshape(-1)

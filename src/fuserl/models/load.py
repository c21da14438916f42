"""Loading targets and tokenizers: safetensors only, no remote code unless asked, no dropout, our attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from fuserl.errors import FuserlError
from fuserl.models import attention
from fuserl.models.checkpointing import checkpoint_activations


def load_policy(
    path: str,
    *,
    dtype: str = "auto",
    lora: dict[str, Any] | None = None,
    checkpointing: str = "none",
    packing: str = "shared",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Any:
    """A causal LM ready to be trained on packs.

    Args:
        path: a folder or a hub name; a folder with a LoRA adapter is merged into its base first, so that a new adapter
            never stacks on an old one.
        dtype: `auto` (the checkpoint's), float32, bfloat16, float64, ...
        lora: keyword arguments of `peft.LoraConfig`; null trains all weights.
        checkpointing: what to recompute in backward: none, full or selective.
        packing: `shared`, for which a model must use transformers' attention interface; or `padded`, for any.

    Raises:
        FuserlError: nothing loadable is there, it needs remote code, it has no safetensors, or it cannot be packed.
    """
    attention.register()
    if Path(path).expanduser().is_dir() and (Path(path).expanduser() / "adapter_config.json").exists():
        model = _merged_adapter(path, dtype)
    else:
        model = _load(
            AutoModelForCausalLM, path, dtype=_dtype(dtype), revision=revision, trust_remote_code=trust_remote_code
        )
    return made_ready(model, lora=lora, checkpointing=checkpointing, packing=packing)


def made_ready(model: Any, *, lora: dict[str, Any] | None, checkpointing: str, packing: str) -> Any:
    """A causal LM with our attention, without dropout, with adapters and checkpointing: see `load_policy`.

    Raises:
        FuserlError: the model cannot be packed or recomputed, or LoRA cannot be set up.
    """
    if packing not in ("shared", "padded"):
        raise FuserlError(f"there is no packing `{packing}`", where="`packing`", hint="shared or padded")
    if packing == "shared" or (_has_attention_interface(model) and not _has_sinks(model)):
        _use_our_attention(model)
    _without_dropout(model)
    checkpoint_activations(model, checkpointing)
    if lora:
        model = _with_lora(model, lora, checkpointing=checkpointing != "none")
    return model.train()


def model_config(path: str, *, revision: str | None = None) -> Any:
    """The configuration of a folder or hub name, of an adapter's base for an adapter; no weights are read.

    Raises:
        FuserlError: there is none.
    """
    adapter = Path(path).expanduser() / "adapter_config.json"
    if adapter.exists():
        path = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return _load(AutoConfig, path, trust_remote_code=False, revision=revision)


def dtype_named(name: str, config: Any) -> torch.dtype:
    """What `target.dtype` means for a model of this configuration.

    Raises:
        FuserlError: there is no such dtype.
    """
    dtype = _dtype(name)
    return (getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else dtype


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """The fast tokenizer of a folder or hub name.

    Raises:
        FuserlError: there is none.
    """
    try:
        said = get_tokenizer_config(_local(path), revision=revision).get("tokenizer_class")
        # "as the file is": AutoTokenizer would put Qwen-2's pre-tokenizer into whatever stands beside such a model
        kind = PreTrainedTokenizerFast if said in ("PreTrainedTokenizerFast", "TokenizersBackend") else AutoTokenizer
        tokenizer = kind.from_pretrained(_local(path), revision=revision, trust_remote_code=False)
    except Exception as error:
        raise not_loadable("tokenizer", path, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise FuserlError("only fast tokenizers are supported", where=str(path), hint="save it with a tokenizer.json")
    return tokenizer


def check_vocabulary(path: str, tokenizer: Any) -> None:
    """The tokenizer must not know ids that the model does not: told from the config alone, before weights are read.

    Raises:
        FuserlError: it does, so it is another model's tokenizer.
    """
    if (Path(path).expanduser() / "adapter_config.json").exists():
        return  # its base is looked at when it is merged
    config = _load(AutoConfig, path, trust_remote_code=False)
    size = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values())
    if size is not None and largest >= size:
        raise FuserlError(
            f"the tokenizer has ids up to {largest}, the model only {size} of them",
            where=str(path),
            hint="this is another model's tokenizer: put the right tokenizer.json into the folder",
        )


def _load(auto: Any, path: str, **kwargs: Any) -> Any:
    if auto is AutoModelForCausalLM:
        kwargs["use_safetensors"] = True
    try:
        return auto.from_pretrained(_local(path), **kwargs)
    except Exception as error:
        raise not_loadable("model", path, error) from error


def _local(path: str) -> str:
    expanded = Path(path).expanduser()
    return str(expanded) if expanded.exists() else str(path)


def not_loadable(what: str, path: str, error: Exception) -> FuserlError:
    """What to do where transformers or the hub gives no model or tokenizer."""
    text = str(error)
    if "trust_remote_code" in text:
        hint = (
            "it wants to run code from its repository; where there is a `trust_remote_code` beside the model, true lets it, "
            "once you have read that code"
        )
    elif "safetensors" in text:
        hint = "convert its weights to safetensors; pickled weights can run code and are refused"
    else:
        hint = "give `target.path` a Hugging Face folder, or a hub name (which needs a network)"
    first = text.splitlines()[0][:160] if text else type(error).__name__
    return FuserlError(f"the {what} cannot be loaded ({first})", where=str(path), hint=hint)


def _dtype(name: str) -> Any:
    dtype = name if name == "auto" else getattr(torch, name, None)
    if dtype != "auto" and not isinstance(dtype, torch.dtype):
        raise FuserlError(
            f"there is no dtype `{name}`", where="`target.dtype`", hint="auto, float32, bfloat16, float16 or float64"
        )
    return dtype


def _merged_adapter(path: str, dtype: str) -> Any:
    from peft import AutoPeftModelForCausalLM

    if not (Path(path).expanduser() / "adapter_model.safetensors").exists():
        raise FuserlError(
            "the adapter has no safetensors",
            where=str(path),
            hint="save it with safe_serialization=True; pickled weights can run code and are refused",
        )
    merged = _load(AutoPeftModelForCausalLM, path, dtype=_dtype(dtype), use_safetensors=True).merge_and_unload()
    return merged.requires_grad_(True)  # peft has frozen what was below the adapter


def _has_attention_interface(model: Any) -> bool:
    return getattr(model, "_supports_attention_backend", False) or getattr(model, "_supports_sdpa", False)


def _has_sinks(model: nn.Module) -> bool:
    return any(name.endswith("sinks") for name, _ in model.named_parameters())


def _use_our_attention(model: Any) -> None:
    if not _has_attention_interface(model):
        raise FuserlError(
            "the model does not use transformers' attention interface, so its prompts cannot be shared",
            where=f"architecture `{type(model).__name__}`",
            hint="use `trainer.packing=padded`, which works for every causal model",
        )
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = attention.NAME


def _without_dropout(model: nn.Module) -> None:
    """Policy and reference must agree at step 0, and runs must repeat: dropout is off, wherever it hides."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _with_lora(model: Any, lora: dict[str, Any], checkpointing: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    try:
        config = LoraConfig(task_type="CAUSAL_LM", **{"lora_dropout": 0.0} | lora)
        if checkpointing:
            model.enable_input_require_grads()
        wrapped = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise FuserlError(
            f"LoRA cannot be set up: {error}", where="`target.lora`", hint="the keys are those of peft.LoraConfig"
        ) from error
    if any(".lora_" in name for name, _ in model.get_output_embeddings().named_parameters(prefix=".")):
        raise FuserlError(
            "LoRA on the output head would not be trained: the head runs in slices of its own",
            where="`target.lora.target_modules`",
            hint="leave `lm_head` out",
        )
    return wrapped

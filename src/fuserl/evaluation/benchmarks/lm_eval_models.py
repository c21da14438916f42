"""Models for lm-eval: loaded as all verbs load them, prompted by our template, every answer kept in a journal.

lm-eval's own keeping is a data base of pickles that does not know whose answers it holds; a journal is text, and its keys
name the model.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import torch
from transformers import GenerationConfig

from fuserl.errors import FuserlError
from fuserl.models.load import load_policy, load_tokenizer
from fuserl.records.journal import Journal
from fuserl.records.schema import Message
from fuserl.sources.source import Source
from fuserl.sources.transformers import context_of, on_device
from fuserl.tokens.templates import Template, load_template


@dataclass
class Kept:
    """What a model said, by question; lm-eval calls it the cache's hook.

    Args:
        identity: of the model and of the way it is asked.
    """

    journal: Journal
    identity: Mapping[str, Any]
    without_system: int = field(default=0, init=False)  # prompts whose system turn the template refused

    def add_partial(self, kind: str, arguments: Iterable[Any], said: Any) -> None:
        """Keep an answer, as soon as it is there."""
        arguments = list(arguments)
        if not _drawn(kind, arguments):
            self.journal.add(self._key(kind, arguments), {"said": said})

    def through(self, kind: str, ask: Callable[[list[Any]], list[Any]], requests: Sequence[Any]) -> list[Any]:
        """All answers in order; only what is not known is asked. Answers that are drawn are always asked anew."""
        keys = [None if _drawn(kind, one.args) else self._key(kind, one.args) for one in requests]
        known = [key is not None and key in self.journal for key in keys]
        missing = [one for one, there in zip(requests, known, strict=True) if not there]
        fresh = iter(ask(missing) if missing else [])
        return [self._said(key) if there else next(fresh) for key, there in zip(keys, known, strict=True)]

    def _said(self, key: Any) -> Any:
        said = self.journal[key]["said"]
        return tuple(said) if isinstance(said, list) else said

    def _key(self, kind: str, arguments: Iterable[Any]) -> str:
        content = json.dumps([self.identity, kind, list(arguments)], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _drawn(kind: str, arguments: Sequence[Any]) -> bool:
    return kind == "generate_until" and bool(arguments[1].get("do_sample"))


class Ours:
    """Goes before a model class of lm-eval: what it says is kept, and prompts are rendered by our template."""

    kept: Kept
    template: Template

    def loglikelihood(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """lm-eval's: (log-probability in nats, whether greedy decoding says the same) of each continuation."""
        ask = super().loglikelihood  # type: ignore[misc]
        return self.kept.through("loglikelihood", lambda missing: ask(missing, *args, **kwargs), requests)

    def loglikelihood_rolling(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """lm-eval's: log-probability of each whole text, nats."""
        ask = super().loglikelihood_rolling  # type: ignore[misc]
        return self.kept.through("loglikelihood_rolling", lambda missing: ask(missing, *args, **kwargs), requests)

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """lm-eval's: a text each."""
        ask = super().generate_until  # type: ignore[misc]
        return self.kept.through("generate_until", lambda missing: ask(missing, *args, **kwargs), requests)

    def apply_chat_template(self, chat_history: list[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation up to where the answer begins, or goes on where the last turn has begun it.

        A system turn that the template refuses is left out, as lm-eval does, and counted.
        """
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        begun = "" if add_generation_prompt else turns.pop().content
        try:
            return self.template.render_prompt(turns) + begun
        except FuserlError:
            if not any(turn.role == "system" for turn in turns):
                raise
        self.kept.without_system += 1
        return self.template.render_prompt([turn for turn in turns if turn.role != "system"]) + begun

    def chat_template(self, chat_template: Any = False) -> str | None:
        """lm-eval's: the template's text."""
        return self.template.chat_template if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval would ask the hub; the result says which model it was."""
        return {}


def transformers_model(source: Source, template: Template, kept: Kept, *, batch_size: int | str, device: str) -> Any:
    """A model in this process: any that `fuserl` loads, a folder with an adapter too; safetensors only.

    The checkpoint's generation_config is not read but for what ends an answer, which the template says as well.

    Args:
        batch_size: prompts in a forward; auto: as many as fit.

    Raises:
        FuserlError: it cannot be loaded.
    """
    policy = load_policy(
        source.path,
        dtype=source.dtype,
        packing="padded",
        trust_remote_code=source.trust_remote_code,
        revision=source.revision,
    )
    tokenizer = template.tokenizer
    policy.generation_config = GenerationConfig(
        eos_token_id=sorted(template.stop_ids), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    settings = {
        "pretrained": on_device(policy, device).eval(),
        "tokenizer": tokenizer,
        "batch_size": batch_size,
        "max_length": context_of(source, policy.config),
        "softmax_dtype": "float32",  # log-probabilities of a bfloat16 model have a bfloat16's three digits otherwise
    }
    with _quiet("lm_eval.models.huggingface"):  # it warns of every model that is loaded already
        made = _class("huggingface", "HFLM")(**settings)
    return _with(made, kept, template)


def vllm_model(source: Source, template: Template, kept: Kept, *, options: Mapping[str, Any]) -> Any:
    """A model in vLLM.

    Args:
        options: further arguments of lm-eval's class `VLLM`: tensor_parallel_size, gpu_memory_utilization, ...

    Raises:
        FuserlError: vLLM is not installed, or cannot start.
    """
    settings = {
        "pretrained": source.path,
        "revision": source.revision,
        "tokenizer_revision": source.revision,
        "dtype": source.dtype,
        "trust_remote_code": source.trust_remote_code,
        "max_model_len": source.context,
        "load_format": "safetensors",
    }
    try:
        made = _class("vllm_causallms", "VLLM")(**settings | dict(options))
    except Exception as error:  # of vLLM: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FuserlError(
            f"lm-eval cannot start vLLM ({why})",
            where="`benchmarks.NAME.backend`",
            hint="`lm_eval@benchmarks.NAME.backend=hf` needs no vLLM; `pip install 'fuserl[vllm]'` brings it",
        ) from error
    return _with(made, kept, template)


def template_of(source: Source, chat: bool) -> Template:
    """The source's; without chat it may have none, and is then `text`.

    Raises:
        FuserlError: it has no fast tokenizer, or no template.
    """
    tokenizer = load_tokenizer(source.path, revision=source.revision)
    bare = not chat and source.chat_template is None and not tokenizer.chat_template
    return load_template(
        tokenizer, chat_template="text" if bare else source.chat_template, date_string=source.date_string
    )


def given_back() -> None:
    """Free what models that nobody holds any more have left on the GPU, for the engine that comes next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
def _class(module: str, name: str) -> Any:
    return type(name, (Ours, getattr(import_module(f"lm_eval.models.{module}"), name)), {})


def _with(model: Any, kept: Kept, template: Template) -> Any:
    model.kept, model.template = kept, template
    model.set_cache_hook(kept)
    return model

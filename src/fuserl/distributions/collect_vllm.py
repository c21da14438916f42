"""Distributions by vLLM: the log-probs of a prompt's tokens, without any answer."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool

from fuserl.distributions.collect import Read, count_setting
from fuserl.distributions.readers import Reader
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.sources.requirements import needed
from fuserl.sources.vllm import QUIET
from fuserl.tokens.store import TokenStore


class VllmCollector:
    """Models on this machine's GPUs, of any size that vLLM can hold.

    vLLM computes a prompt anew for each of its responses when it is asked for a prompt's log-probs.

    Args:
        tensor_parallel_size: GPUs that share a model.
        gpu_memory_utilization: share of each GPU's memory.
        enforce_eager: no compilation and no CUDA graphs.
        max_tokens: of the groups that are given to vLLM together.
        options: further arguments of `vllm.LLM`.

    Raises:
        FuserlError: vLLM is not installed, or a setting is out of its range.
    """

    def __init__(
        self,
        *,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        max_tokens: int,
        options: Mapping[str, Any],
    ) -> None:
        count_setting("tensor_parallel_size", tensor_parallel_size)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.vllm, self.max_tokens, self.options = _vllm(), count_setting("max_tokens", max_tokens), dict(options)
        self.settings = {
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "generation_config": "vllm",
            "load_format": "safetensors",
            **options,
        }

    def identity(self) -> Mapping[str, Any]:
        """vLLM's release counts, kernels change between releases; and what it is given further, a quantisation say."""
        return {"by": "vllm", "version": self.vllm.__version__, "options": self.options}

    @contextmanager
    def opened(self, reader: Reader, k: int) -> Iterator[PromptLogprobs]:
        """See `Collector`.

        Raises:
            FuserlError: vLLM cannot start with this model on this machine.
        """
        folder, k = Path(reader.model.path).expanduser(), min(k, len(reader.vocabulary))
        try:
            llm = self.vllm.LLM(
                model=str(folder) if folder.exists() else reader.model.path,
                revision=reader.model.revision,
                tokenizer_revision=reader.model.revision,
                dtype=reader.model.dtype,
                trust_remote_code=reader.model.trust_remote_code,
                max_logprobs=k,
                **self.settings,
            )
        except Exception as error:  # of vLLM, transformers, CUDA: there is no common class
            raise _told(error, f"vLLM cannot start with {reader.model.path}") from error
        params = self.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, detokenize=False)
        try:
            yield PromptLogprobs(llm, params, k, len(reader.vocabulary))
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


class PromptLogprobs:
    """A model that vLLM holds. It always answers, with one token: a text as long as its context cannot be read."""

    def __init__(self, llm: Any, params: Any, k: int, size: int) -> None:
        self.llm, self.params, self.k, self.size = llm, params, k, size

    def read(self, store: TokenStore, rows: Sequence[int], used: Bool[np.ndarray, "N K"]) -> Iterator[Read]:
        """See `Opened`.

        Raises:
            FuserlError: vLLM stops.
        """
        valid = np.asarray(store.valid)
        places = [(row, column) for row in rows for column in np.flatnonzero(used[row] & valid[row]).tolist()]
        ids = {place: [*store.prompt(place[0]).tolist(), *store.branch(*place).tolist()] for place in places}
        asked = {tuple(one): None for one in ids.values() if len(one) < self.llm.model_config.max_model_len}
        prompts = [{"prompt_token_ids": list(one)} for one in asked]
        try:
            outputs = self.llm.generate(prompts, self.params, use_tqdm=False)
        except Exception as error:
            raise _told(error, "vLLM stopped") from error
        answered = dict(zip(asked, outputs, strict=True))
        for place in places:
            count = int(store.num_tokens[place])  # at least the end of the turn
            output = answered.get(tuple(ids[place]))
            said = output.prompt_logprobs[-count:] if output else [{}] * count
            yield Read(*place, *expected(said, ids[place][-count:], self.k, self.size))


def expected(
    said: Sequence[Mapping[int, Any]], labels: Sequence[int], k: int, size: int
) -> tuple[TopK, np.ndarray, np.ndarray]:
    """(likeliest tokens, nats of the label, log of the rest) from what vLLM says of each position.

    Args:
        said: token -> an object with `logprob` and `rank`: the k likeliest, and the label where it is none of them;
            nothing where the text could not be read, whose nats are NaN.
        size: ids from here on are padding, which no tokenizer knows.
    """
    ids, logps = np.full((len(said), k), -1, dtype=np.int64), np.full((len(said), k), -np.inf)
    ce, tail = np.zeros(len(said)), np.zeros(len(said))
    for place, (position, label) in enumerate(zip(said, labels, strict=True)):
        best = sorted((-one.logprob, token) for token, one in position.items() if one.rank <= k and token < size)[:k]
        for rank, (nats, token) in enumerate(best):
            ids[place, rank], logps[place, rank] = token, -nats
        ce[place] = -position[label].logprob if position else math.nan
        rest = 1.0 - math.fsum(math.exp(-nats) for nats, _ in best)
        tail[place] = math.log(rest) if rest > 0 else -np.inf
    return TopK(ids, logps), ce, tail


def _told(error: Exception, what: str) -> FuserlError:
    lines = str(error).splitlines() or [type(error).__name__]
    return FuserlError(
        f"{what} ({lines[0][:300]})",
        where="`collector=vllm`",
        hint="its own messages above say more; `collector=transformers` runs any architecture; what was read is kept",
    )


def _vllm() -> ModuleType:
    try:
        return needed("vllm", "vllm")
    except FuserlError as error:  # the engine's words; the setting is ours
        hint = error.hint.replace("another engine: `engine=transformers`", "`collector=transformers`, which")
        raise FuserlError(error.what, where="`collector=vllm`", hint=hint) from error

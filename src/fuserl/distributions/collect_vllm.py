"""Distributions by vLLM: the log-probs of a prompt's tokens, without any answer."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fuserl.distributions.collect import Read
from fuserl.distributions.readers import Reader
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.sources.requirements import needed, require_counts
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
        FuserlError: vLLM is not installed.
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
        require_counts(tensor_parallel_size=tensor_parallel_size, max_tokens=max_tokens)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.vllm, self.max_tokens = needed("vllm", "vllm"), max_tokens
        self.settings = {
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "generation_config": "vllm",
            "load_format": "safetensors",
            **options,
        }

    def identity(self) -> Mapping[str, Any]:
        """vLLM's release counts: kernels change between releases."""
        return {"by": "vllm", "version": self.vllm.__version__}

    @contextmanager
    def opened(self, reader: Reader, k: int) -> Iterator[PromptLogprobs]:
        """See `Collector`.

        Raises:
            FuserlError: vLLM cannot start with this model on this machine.
        """
        folder = Path(reader.model.path).expanduser()
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
            raise _told(error, "vLLM cannot start") from error
        params = self.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, detokenize=False)
        yield PromptLogprobs(llm, params, k, len(reader.vocabulary))
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


class PromptLogprobs:
    """A model that vLLM holds."""

    def __init__(self, llm: Any, params: Any, k: int, size: int) -> None:
        self.llm, self.params, self.k, self.size = llm, params, k, size

    def read(self, store: TokenStore, rows: Sequence[int], used: Bool[np.ndarray, "N K"]) -> Iterator[Read]:
        """See `Opened`.

        Raises:
            FuserlError: vLLM stops.
        """
        valid = np.asarray(store.valid)
        places = [(row, column) for row in rows for column in np.flatnonzero(used[row] & valid[row]).tolist()]
        texts = {bytes(store.keys[place]): place for place in reversed(places)}
        prompts = [
            {"prompt_token_ids": [*store.prompt(row).tolist(), *store.branch(row, column).tolist()]}
            for row, column in texts.values()
        ]
        try:
            outputs = self.llm.generate(prompts, self.params, use_tqdm=False)
        except Exception as error:
            raise _told(error, "vLLM stopped") from error
        answered = dict(zip(texts, zip(prompts, outputs, strict=True), strict=True))
        for row, column in places:
            prompt, output = answered[bytes(store.keys[row, column])]
            count = int(store.num_tokens[row, column])
            labels = prompt["prompt_token_ids"][-count:] if count else []
            yield Read(
                row, column, *expected(output.prompt_logprobs[-count:] if count else [], labels, self.k, self.size)
            )


def expected(
    said: Sequence[Mapping[int, Any]], labels: Sequence[int], k: int, size: int
) -> tuple[TopK, np.ndarray, np.ndarray]:
    """(likeliest tokens, nats of the label, log of the rest) from what vLLM says of each position.

    Args:
        said: token -> an object with `logprob` and `rank`: the k likeliest, and the label where it is none of them.
        size: ids from here on are padding, which no tokenizer knows.
    """
    ids, logps = np.full((len(said), k), -1, dtype=np.int64), np.full((len(said), k), -np.inf)
    ce, tail = np.zeros(len(said)), np.zeros(len(said))
    for place, (position, label) in enumerate(zip(said, labels, strict=True)):
        best = sorted((-one.logprob, token) for token, one in position.items() if one.rank <= k and token < size)[:k]
        for rank, (nats, token) in enumerate(best):
            ids[place, rank], logps[place, rank] = token, -nats
        ce[place] = -position[label].logprob
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

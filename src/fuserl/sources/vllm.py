"""The engine for GPUs: vLLM in this process's service, fed as it works, read as answers finish."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.sources.protocol import Answer, Failure, Request, Sampling, as_written
from fuserl.sources.rendering import rendering_of
from fuserl.sources.requirements import needed, require_counts
from fuserl.sources.source import Source

PARAMETERS = (*(field.name for field in fields(Sampling)), "seed")
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}  # unless the environment says otherwise


class VllmEngine:
    """A source on vLLM's offline engine, started once.

    Prompts go in as tokens of our template, so that training sees the same ones. What a request's sampling does not
    say, vLLM's own defaults do, never a file beside the model; the tokens that end a turn are the template's.

    Args:
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: share of each GPU's memory.
        enforce_eager: no compilation and no CUDA graphs: starts sooner, runs slower.
        in_flight: requests that vLLM has at a time, running and queueing; at least as many as it batches.
        options: further arguments of `vllm.LLM`.

    Raises:
        FuserlError: vLLM is not installed, or it cannot start with this model on this machine.
    """

    def __init__(
        self,
        source: Source,
        *,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        in_flight: int,
        options: Mapping[str, Any],
    ) -> None:
        require_counts(tensor_parallel_size=tensor_parallel_size, in_flight=in_flight)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.vllm, self.in_flight = needed("vllm", "vllm"), in_flight
        self.rendering = rendering_of(source)
        folder = Path(source.path).expanduser()
        settings = {
            "model": str(folder) if folder.exists() else source.path,
            "revision": source.revision,
            "tokenizer_revision": source.revision,
            "dtype": source.dtype,
            "max_model_len": source.context,
            "trust_remote_code": source.trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "load_format": "safetensors",
            "seed": 0,
        }
        try:
            self.llm = self.vllm.LLM(**settings | dict(options))
        except Exception as error:
            raise _told(error, "vLLM cannot start") from error
        self.context = int(self.llm.llm_engine.model_config.max_model_len)
        self.extra = {"engine": f"vllm {self.vllm.__version__}"}

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """Answers as they finish; never more than `in_flight` requests are drawn ahead of them."""
        engine, stream, number = self.llm.llm_engine, iter(requests), 0
        under_way: dict[str, tuple[Request, Any]] = {}
        while True:
            for request in islice(stream, self.in_flight - len(under_way)):
                asked = self._added(str(number := number + 1), request)
                if isinstance(asked, Failure):
                    yield asked
                else:
                    under_way[str(number)] = request, asked
            if not under_way:
                return
            for output in self._stepped(engine):
                if output.finished:
                    yield self._answered(*under_way.pop(output.request_id), output.outputs[0])

    def close(self) -> None:
        """Stop vLLM's processes and free their memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()

    def _added(self, number: str, request: Request) -> Any:
        """The parameters that vLLM has got for it, or why it has got nothing."""
        ids, engine = self.rendering.prompt(request, self.context), self.llm.llm_engine
        if isinstance(ids, Failure):
            return ids
        prompt: Any = {"prompt_token_ids": list(ids)}
        try:
            params = self._params(request, self.context - len(ids))
            if render := getattr(getattr(engine, "renderer", None), "render_cmpl", None):  # as newer releases want it
                (prompt,) = render([prompt])
            engine.add_request(number, prompt, params)
        except ValueError as error:
            return Failure(request.key, f"vLLM refuses it ({str(error).splitlines()[0][:200]})", passing=False)
        return params

    def _params(self, request: Request, room: int) -> Any:
        asked = request.sampling
        return self.vllm.SamplingParams(
            n=1,
            seed=request.seed,
            max_tokens=min(asked.max_tokens, room),
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            stop=list(asked.stop),
            stop_token_ids=sorted(self.rendering.template.stop_ids),
            detokenize=bool(asked.stop),
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _stepped(self, engine: Any) -> list[Any]:
        try:
            return engine.step()
        except Exception as error:
            raise _told(error, "vLLM stopped") from error

    def _answered(self, request: Request, params: Any, output: Any) -> Answer | Failure:
        if output.finish_reason not in ("stop", "length"):
            return Failure(request.key, f"vLLM ended it with `{output.finish_reason}`", passing=True)
        used = as_written({name: getattr(params, name) for name in PARAMETERS})
        return self.rendering.answer(request, list(output.token_ids), sampling=used, extra=self.extra)


def _told(error: Exception, what: str) -> FuserlError:
    lines = str(error).splitlines() or [type(error).__name__]
    return FuserlError(
        f"{what} ({lines[0][:300]})",
        where="`engine=vllm`",
        hint="its own messages above say more (VLLM_LOGGING_LEVEL=INFO for all of them); a smaller "
        "`sources.NAME.context` or more GPUs in `engine.tensor_parallel_size` save memory; what was answered is kept",
    )

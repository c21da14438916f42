"""Reward models in vLLM: its pooling runner, without the activation it puts on one logit by default."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fuserl.errors import FuserlError

QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}  # unless the environment says otherwise


class VllmForwards:
    """vLLM's sequence classification of one logit, read at the last token.

    Args:
        tensor_parallel_size: GPUs that share one model.
        gpu_memory_utilization: share of a GPU's memory.
        enforce_eager: no CUDA graphs.

    Raises:
        FuserlError: vLLM is not installed.
    """

    def __init__(
        self,
        path: str,
        *,
        revision: str | None,
        trust_remote_code: bool,
        max_length: int | None,
        dtype: str,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
    ) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise FuserlError(
                "vLLM is not installed",
                where="`classifier`",
                hint="`pip install 'fuserl[vllm]'`, or `classifier@rewards.NAME.classifier=transformers`",
            ) from error
        self.vllm, self.version = vllm, vllm.__version__
        self.dtype = _dtype(dtype)
        self.settings = {
            "model": path,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "max_model_len": max_length,
            "dtype": self.dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "load_format": "safetensors",
        }
        self._llm: Any = None

    def identity(self) -> Mapping[str, Any]:
        """vLLM's release counts: kernels change between releases."""
        return {"by": "vllm", "version": self.version, "dtype": self.dtype}

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """See `Classifier`; all rows at once, vLLM makes the batches.

        Raises:
            FuserlError: vLLM cannot load or run the model, or it gives several numbers a row.
        """
        if not rows:
            return
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        asked = self.vllm.PoolingParams(use_activation=False)
        llm = self._opened()
        try:
            found = llm.encode(prompts, pooling_params=asked, pooling_task="classify", use_tqdm=False)
        except Exception as error:
            raise self._told(error, "vLLM stopped") from error
        for place, output in enumerate(found):
            numbers = output.outputs.data.double().reshape(-1).tolist()
            if len(numbers) != 1:
                raise FuserlError(
                    f"the model has {len(numbers)} labels, which say no single number",
                    where=f"`{self.settings['model']}`",
                    hint="`classifier@rewards.NAME.classifier=transformers` can read one of them",
                )
            yield place, numbers[0]

    def close(self) -> None:
        """Stop vLLM's processes and give back the devices' memory."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _opened(self) -> Any:
        if self._llm is None:
            try:
                self._llm = self.vllm.LLM(runner="pooling", convert="classify", **self.settings)
            except Exception as error:
                raise self._told(error, "vLLM cannot load the reward model") from error
        return self._llm

    def _told(self, error: Exception, what: str) -> FuserlError:
        """Of vLLM, transformers, CUDA: there is no common class."""
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return FuserlError(
            f"{what} ({why})",
            where=f"`{self.settings['model']}`",
            hint="its own messages above say more; `classifier@rewards.NAME.classifier=transformers` runs any architecture",
        )


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"

"""Reward models in vLLM: its pooling runner, without the activation it puts on one logit by default."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fuserl.errors import FuserlError


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
        }
        self._llm: Any = None

    def identity(self) -> Mapping[str, Any]:
        """vLLM's release counts: kernels change between releases."""
        return {"by": "vllm", "version": self.version, "dtype": self.dtype}

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """See `Classifier`; all rows at once, vLLM makes the batches.

        Raises:
            FuserlError: vLLM cannot load the model, or it gives several numbers a row.
        """
        if not rows:
            return
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        asked = self.vllm.PoolingParams(use_activation=False)
        found = self._opened().encode(prompts, pooling_params=asked, pooling_task="classify", use_tqdm=False)
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
        """Give back the devices' memory."""
        self._llm = None
        gc.collect()

    def _opened(self) -> Any:
        if self._llm is None:
            try:
                self._llm = self.vllm.LLM(runner="pooling", convert="classify", **self.settings)
            except Exception as error:  # of vLLM, transformers, CUDA: there is no common class
                why = (str(error).splitlines() or [type(error).__name__])[0][:160]
                raise FuserlError(
                    f"vLLM cannot load the reward model ({why})",
                    where=f"`{self.settings['model']}`",
                    hint="`classifier@rewards.NAME.classifier=transformers` loads any architecture",
                ) from error
        return self._llm


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"

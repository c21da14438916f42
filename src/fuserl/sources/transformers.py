"""The engine for processors and single devices: transformers' models, decoded in a batch that is always full."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers

from fuserl.errors import FuserlError
from fuserl.models.continuous import Decoder, Wanted
from fuserl.models.drawing import Drawing
from fuserl.models.load import check_vocabulary, load_policy
from fuserl.sources.protocol import Answer, Failure, Request, as_written
from fuserl.sources.rendering import rendering_of
from fuserl.sources.requirements import require_counts
from fuserl.sources.source import Source

COLDEST = 0.01  # vLLM raises temperatures above 0 to this


class TransformersEngine:
    """A source in this process.

    A request's seed, prompt and sampling decide its answer. What else is decoded at the same time changes rounding
    only, which in half precision may tip a choice between tokens that are nearly equally likely.

    Args:
        batch_tokens: of prompts and whole answers decoded together; bounds the memory of keys and values.
        device: cpu, cuda, cuda:1, mps; auto: a GPU where there is one.

    Raises:
        FuserlError: the model, its tokenizer or its template cannot be loaded, or the device is not there.
    """

    def __init__(self, source: Source, *, batch_tokens: int, device: str) -> None:
        require_counts(batch_tokens=batch_tokens)
        transformers.utils.logging.disable_progress_bar()  # the verb has its own
        self.rendering = rendering_of(source)
        check_vocabulary(source.path, self.rendering.template.tokenizer)
        model = load_policy(
            source.path,
            dtype=source.dtype,
            packing="padded",
            trust_remote_code=source.trust_remote_code,
            revision=source.revision,
        )
        self.context = context_of(source, model.config)
        self.decoder = Decoder(
            on_device(model, device),
            stop_ids=self.rendering.template.stop_ids,
            batch_tokens=batch_tokens,
            context=self.context,
            ends=self._meets_stop,
        )
        self.extra = {"engine": f"transformers {transformers.__version__}"}

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer | Failure]:
        """Answers as they end; requests are drawn as rows of the batch become free."""
        failed: list[Failure] = []
        for wanted, ids in self._decoded(self._wanted(requests, failed)):
            yield from _emptied(failed)
            request = wanted.tag
            used = as_written({"max_tokens": wanted.most, **wanted.drawing._asdict()})
            used |= {"stop": list(request.sampling.stop), "seed": request.seed}
            yield self.rendering.answer(request, ids, sampling=used, extra=self.extra)
        yield from _emptied(failed)

    def close(self) -> None:
        """Free the model."""
        del self.decoder
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _wanted(self, requests: Iterable[Request], failed: list[Failure]) -> Iterator[Wanted]:
        for request in requests:
            prompt = self.rendering.prompt(request, self.context)
            if isinstance(prompt, Failure):
                failed.append(prompt)
                continue
            asked = request.sampling
            most = min(asked.max_tokens, self.context - len(prompt)) if self.context else asked.max_tokens
            temperature = max(asked.temperature, COLDEST) if asked.temperature else 0.0
            drawing = Drawing(
                temperature=temperature,
                top_k=asked.top_k,
                top_p=asked.top_p,
                min_p=asked.min_p,
                repetition_penalty=asked.repetition_penalty,
                presence_penalty=asked.presence_penalty,
                frequency_penalty=asked.frequency_penalty,
            )
            yield Wanted(prompt, most, drawing, request.seed, request)

    def _decoded(self, wanted: Iterator[Wanted]) -> Iterator[tuple[Wanted, list[int]]]:
        try:
            yield from self.decoder.answers(wanted)
        except torch.OutOfMemoryError as error:
            raise FuserlError(
                "the device has not enough memory for the batch",
                where="`engine.batch_tokens`",
                hint="halve it and run the same command again; what was answered is kept",
            ) from error

    def _meets_stop(self, wanted: Wanted, ids: list[int]) -> bool:
        """A stop text has come, as far as the last tokens tell; the whole answer is looked at when it is cut."""
        stops = wanted.tag.sampling.stop
        if not stops:
            return False
        text = self.rendering.decoded(ids[-4 * max(map(len, stops)) - 8 :])
        return any(stop in text for stop in stops)


def context_of(source: Source, config: Any) -> int | None:
    """Tokens that prompt and answer may have together: what the source says, at most what the model knows.

    Raises:
        FuserlError: the source says more.
    """
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if source.context and known and source.context > known:
        raise FuserlError(
            f"the context is {source.context} tokens, and the model knows {known} positions",
            where=f"`sources.{source.name}.context`",
            hint=f"give {known} or less, or null for what the model states",
        )
    return source.context or known


def on_device(model: Any, device: str) -> Any:
    """The model where it shall run.

    Raises:
        FuserlError: there is no such device, or no room on it.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:
        raise FuserlError(
            f"the model cannot be brought to `{name}` ({str(error).splitlines()[0][:160]})",
            where="`engine.device`",
            hint="auto, cpu, cuda, cuda:1; a model too large for one device needs `engine=vllm`",
        ) from error


def _emptied(failed: list[Failure]) -> Iterator[Failure]:
    while failed:
        yield failed.pop(0)

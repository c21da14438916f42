"""Distributions by transformers' models in this process: prompts computed once, full logits a slice at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from fuserl.distributions.collect import Read, count_setting
from fuserl.distributions.readers import Reader
from fuserl.distributions.topk import TopK
from fuserl.errors import FuserlError
from fuserl.models.head import Head
from fuserl.models.kernels import checked_backend
from fuserl.models.load import load_policy
from fuserl.models.scoring import causal_lm, rows_within, trained_states, unpacked
from fuserl.sources.transformers import on_device
from fuserl.tokens.collate import GroupBatch, collate
from fuserl.tokens.store import TokenStore

Slices = Callable[
    [Any, GroupBatch], Iterator[Tensor]
]  # (model, pack) -> log-probs [S, V] of its trained tokens, in order


class TransformersCollector:
    """A model of any architecture on one device.

    Args:
        device: cpu, cuda, cuda:1, mps; auto: a GPU where there is one.
        packing: `shared` computes a prompt once for all its responses; `padded` runs every model, more slowly.
        max_tokens: of the groups that are computed together.
        logits_memory: GiB that logits may take.

    Raises:
        FuserlError: a setting is out of its range.
    """

    def __init__(self, *, device: str, packing: str, max_tokens: int, logits_memory: float) -> None:
        if packing not in ("shared", "padded"):
            raise FuserlError(f"`packing` is {packing!r}", where="`collector.packing`", hint="shared or padded")
        if not isinstance(logits_memory, float | int) or not logits_memory > 0:
            raise FuserlError(
                f"`logits_memory` is {logits_memory!r}", where="`collector.logits_memory`", hint="GiB, above 0"
            )
        self.device, self.packing, self.logits_memory = device, packing, logits_memory
        self.max_tokens = count_setting("max_tokens", max_tokens)

    def identity(self) -> Mapping[str, Any]:
        """Packing and packs change rounding alone, and so does nothing else here."""
        return {"by": "transformers", "packing": self.packing}

    @contextmanager
    def opened(self, reader: Reader, k: int) -> Iterator[Forward]:
        """See `Collector`.

        Raises:
            FuserlError: the model cannot be loaded, has no room on the device, or cannot be packed.
        """
        transformers.utils.logging.disable_progress_bar()  # the verb has its own
        with reader.model.told():
            model = load_policy(
                reader.model.path,
                dtype=reader.model.dtype,
                packing=self.packing,
                trust_remote_code=reader.model.trust_remote_code,
                revision=reader.model.revision,
            )
        model = _placed(model, self.device).eval()
        with reader.model.told():
            forward = Forward(model, self._slices(model), k, len(reader.vocabulary))
        yield forward
        del model, forward.model, forward.slices
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _slices(self, model: Any) -> Slices:
        if self.packing == "padded":
            return one_by_one
        return partial(packed, backend=checked_backend(model, "auto"), rows=rows_within(self.logits_memory, model))


def packed(model: Any, batch: GroupBatch, *, backend: str, rows: int) -> Iterator[Float[Tensor, "S V"]]:
    """Log-probs where trained tokens stand, some positions at a time; prompts are computed once."""
    head, states = Head.of(causal_lm(model)), trained_states(model, batch, backend)
    for some in states.split(rows):
        logits = head.logits(some) * head.scale
        yield (logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)).log_softmax(dim=1)


def one_by_one(model: Any, batch: GroupBatch) -> Iterator[Float[Tensor, "S V"]]:
    """The same, each response in a forward of its own with its prompt: any causal model, and the oracle."""
    for ids, trained in unpacked(batch):
        logits = causal_lm(model)(input_ids=ids[None], use_cache=False).logits[0, :-1][trained[1:]]
        yield logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(dim=1)


class Forward:
    """A loaded model.

    Args:
        slices: how it runs over a pack.
        size: ids from here on are padding of the model's vocabulary, which no tokenizer knows.
    """

    def __init__(self, model: Any, slices: Slices, k: int, size: int) -> None:
        self.model, self.slices, self.k, self.size = model, slices, min(k, size), size

    def read(self, store: TokenStore, rows: Sequence[int], used: Bool[np.ndarray, "N K"]) -> Iterator[Read]:
        """See `Opened`.

        Raises:
            FuserlError: the device's memory does not suffice.
        """
        batch = collate(store, rows, used)
        try:
            found = self._expected(batch.to(next(self.model.parameters()).device))
        except torch.OutOfMemoryError as error:
            raise FuserlError(
                "the device has not enough memory for the texts",
                where="`collector.max_tokens`",
                hint="halve it and run the same command again; what was read is kept",
            ) from error
        ends = np.cumsum([segment.trained for segment in batch.segments if not segment.is_prompt])
        parts = [np.split(part.cpu().numpy(), ends[:-1]) for part in found]
        for number, row in enumerate(rows):
            for column, unique in enumerate(batch.row[number].tolist()):
                if unique >= 0:
                    ids, logps, nats, rest = (part[unique] for part in parts)
                    yield Read(row, column, TopK(ids, logps.astype(np.float64)), nats.astype(np.float64), rest)

    @torch.inference_mode()
    def _expected(self, batch: GroupBatch) -> list[Tensor]:
        """Ids and log-probs of the likeliest tokens, nats of the label, log of the rest: [R, k], [R, k], [R], [R]."""
        found, done = [], 0
        for logps in self.slices(self.model, batch):
            if logps.shape[1] < self.size:
                raise FuserlError(f"the tokenizer has {self.size} tokens, the model {logps.shape[1]} of them")
            labels = batch.labels[done : done + len(logps)]
            top, ids = logps[:, : self.size].topk(self.k, dim=1)
            nats = -logps.gather(1, labels[:, None])[:, 0]
            rest = logps.scatter_(1, ids, -torch.inf).logsumexp(dim=1)  # on its own: a difference would lose small ones
            found.append((ids, top, nats, rest))
            done += len(logps)
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _placed(model: Any, device: str) -> Any:
    try:
        return on_device(model, device)
    except FuserlError as error:  # the engine's words; the setting is ours
        raise FuserlError(error.what, where=error.where.replace("engine.", "collector."), hint=error.hint) from error

"""Forwards of a reward model: many conversations in, a number each out, whatever stands beside them in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fuserl.errors import FuserlError
from fuserl.rewards.batches import bucketed, padded, unused_token

POOLED = ("last", "saved")


@runtime_checkable
class Classifier(Protocol):
    """A reward model at work, bound to its checkpoint; its weights are read when the first number is asked for."""

    def identity(self) -> Mapping[str, Any]:
        """What decides a number beside weights and tokens."""
        ...

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """(place, number) of every row of token ids, in any order, as they come."""
        ...

    def close(self) -> None:
        """Give back the devices' memory."""
        ...


class Forwards:
    """Transformers' own code: a replica of the model on each device; a batch goes to the next that is free.

    Its classifiers look for the last token that is not padding by its id. Chat models often pad with their
    end-of-turn token, and would then be read one token early; so every batch is padded with a token that none of its
    rows holds, and what is read is the last token of the conversation. `saved` leaves the checkpoint's own padding
    token, and so that earlier place, for models that were trained so.

    Args:
        model: loads it, see `heads.sequence_classification`.
        read: its output -> one number a row, see `heads.logit`.
        max_batch_tokens: of a forward, padding counted.

    Raises:
        FuserlError: there is no such device, dtype or place to read.
    """

    def __init__(
        self,
        path: str,
        *,
        revision: str | None,
        trust_remote_code: bool,
        max_length: int | None,
        model: Callable[..., nn.Module],
        read: Callable[[Any], Tensor],
        dtype: str,
        devices: str,
        pooled: str,
        max_batch_tokens: int,
    ) -> None:
        if pooled not in POOLED:
            raise FuserlError(
                f"`{pooled}` is no place to read a number at", where="`pooled`", hint=f"one of {', '.join(POOLED)}"
            )
        self.devices, self.read, self.pooled, self.max_batch_tokens = (
            devices_of(devices),
            read,
            pooled,
            max_batch_tokens,
        )
        self.dtype = dtype_on(dtype, self.devices[0])
        self.load = partial(model, path, revision=revision, dtype=self.dtype, trust_remote_code=trust_remote_code)
        self._names = name_of(model), name_of(read)
        self._free: SimpleQueue[nn.Module] = SimpleQueue()
        self._opened = False

    def identity(self) -> Mapping[str, Any]:
        """Neither devices nor sizes of batches are of it."""
        model, read = self._names
        dtype = str(self.dtype).removeprefix("torch.")
        return {"by": "transformers", "model": model, "read": read, "pooled": self.pooled, "dtype": dtype}

    def numbers(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """See `Classifier`; rows of like lengths together, the longest first.

        Raises:
            FuserlError: the model cannot be loaded, or a device has not enough memory.
        """
        if not rows:
            return
        self._open()
        batches = bucketed([len(row) for row in rows], self.max_batch_tokens)
        with ThreadPoolExecutor(len(self.devices)) as threads:
            found = threads.map(lambda batch: self._batch([rows[place] for place in batch]), batches)
            for batch, numbers in zip(batches, found, strict=True):
                yield from zip(batch, numbers, strict=True)

    def close(self) -> None:
        """Give back the devices' memory."""
        while not self._free.empty():
            self._free.get()
        self._opened = False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _open(self) -> None:
        if not self._opened:
            for device in self.devices:
                self._free.put(self.load().to(device))
            self._opened = True

    @torch.inference_mode()
    def _batch(self, rows: list[Sequence[int]]) -> list[float]:
        model = self._free.get()
        try:
            pad = self._padding(model, rows)
            if pad is None:  # every id of a tiny vocabulary is in use: one by one nothing is padded
                return [self._forward(model, [row], None)[0] for row in rows]
            return self._forward(model, rows, pad)
        except torch.OutOfMemoryError as error:
            raise FuserlError(
                f"{len(rows)} conversations of up to {max(map(len, rows)):,} tokens do not fit into the device's memory",
                where=f"`max_batch_tokens={self.max_batch_tokens}`",
                hint="give a smaller number and run the same command again; what was scored is kept",
            ) from error
        finally:
            self._free.put(model)

    def _padding(self, model: Any, rows: list[Sequence[int]]) -> int | None:
        config = model.config.get_text_config()
        saved = config.pad_token_id if self.pooled == "saved" else None
        return saved if saved is not None else unused_token(rows, config.vocab_size)

    def _forward(self, model: Any, rows: list[Sequence[int]], pad: int | None) -> list[float]:
        ids, mask = padded(rows, 0 if pad is None else pad)
        configs = (model.config, model.config.get_text_config())  # where a model's code looks for the padding token
        before = [config.pad_token_id for config in configs]
        try:
            for config in configs:
                config.pad_token_id = pad
            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        finally:
            for config, saved in zip(configs, before, strict=True):
                config.pad_token_id = saved
        return self.read(output).double().cpu().tolist()


def devices_of(wanted: str) -> list[torch.device]:
    """`auto`: every GPU that is visible, or the CPU; else what is named, as `cuda:1`.

    Raises:
        FuserlError: torch has no such device.
    """
    if wanted == "auto":
        count = torch.cuda.device_count()
        return [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
        return [device]
    except (RuntimeError, AssertionError) as error:
        raise FuserlError(
            f"there is no device `{wanted}` ({str(error).splitlines()[0][:80]})",
            where="`devices`",
            hint="auto, cpu or cuda:N",
        ) from error


def dtype_on(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on a GPU, float32 on the CPU.

    Raises:
        FuserlError: there is no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FuserlError(f"there is no dtype `{name}`", where="`dtype`", hint="auto, float32, bfloat16 or float16")
    return dtype


def name_of(function: Any) -> str:
    """A function with the settings it was given, for the identity."""
    if isinstance(function, partial):
        given = "".join(f", {key}={value!r}" for key, value in sorted(function.keywords.items()))
        return name_of(function.func) + given
    return f"{function.__module__}.{function.__qualname__}"

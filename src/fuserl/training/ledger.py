"""What is alive in a computation whose tensors have shapes but no memory, and when most of it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fuserl.training.heap import LARGEST, Heap

KINDS = ("activations", "logits and head", "gradients")
KEPT = "holes"


class Ledger(TorchDispatchMode):
    """Bytes alive by kind, and the moment at which a process would hold most.

    Args:
        heap: where a processor's smaller blocks lie; None: nothing but blocks takes memory.
    """

    def __init__(self, heap: Heap | None) -> None:
        super().__init__()
        self.heap, self.kind = heap, KINDS[0]
        self.kind_of: dict[int, tuple[str, int]] = {}  # storage -> kind, bytes
        self.alive: Counter[str] = Counter()
        self.mapped, self.small, self.peak = 0, 0, 0  # bytes: outside the heap, inside it, most that was held
        self.at_peak: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.kind_of or not size:
            return
        self.kind_of[key] = self.kind, size
        self.alive[self.kind] += size
        if self.heap and size < LARGEST:
            self.heap.take(key, size)
            self.small += size
        else:
            self.mapped += size
        weakref.finalize(storage, self._gone, key).atexit = False
        if self.held > self.peak:
            self.forget_peak()

    def _gone(self, key: int) -> None:
        kind, size = self.kind_of.pop(key)
        self.alive[kind] -= size
        if self.heap and size < LARGEST:
            self.heap.give(key)
            self.small -= size
        else:
            self.mapped -= size

    @property
    def held(self) -> int:
        """Bytes of the process: what is alive, and the heap's holes."""
        return self.mapped + (self.heap.top if self.heap else 0)

    def forget_peak(self) -> None:
        """The present is the worst moment so far."""
        self.peak, self.at_peak = self.held, {**self.alive, KEPT: self.held - self.mapped - self.small}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """What was there before; it must outlive the ledger."""
        for tensor in tensors:
            self.kind_of[id(tensor.untyped_storage())] = "given", 0

    @contextmanager
    def graph(self) -> Iterator[None]:
        """A forward pass whose graph is gone when backward begins."""
        if self.heap:
            self.heap.grows = True
        yield
        if self.heap:
            self.heap.settle()

    def call_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of weights, whoever made their memory."""
        for parameter in parameters:
            if parameter.grad is None:
                continue
            key = id(parameter.grad.untyped_storage())
            kind, size = self.kind_of[key]
            self.alive[kind] -= size
            self.alive["gradients"] += size
            self.kind_of[key] = "gradients", size

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """What is made here is of this kind."""
        before, self.kind = self.kind, kind
        yield
        self.kind = before

"""A policy cut up over processes (FSDP2): each keeps a share of every weight and gathers a layer while it computes.

Weights are gathered by hooks of a module's forward. Ours reads the head's weight without calling the head, so whatever
computes runs inside `whole`, a forward of the root: embeddings and head, tied or not, are there until backward is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fuserl.errors import FuserlError
from fuserl.models.scoring import PackLoss, Scoring, TableLoss, causal_lm, layers
from fuserl.objectives.distillation import Policy
from fuserl.objectives.terms import Number
from fuserl.tokens.collate import GroupBatch


def shard(
    model: Any, mesh: DeviceMesh, gather: torch.dtype | None = None, ready: Callable[..., None] = lambda *_: None
) -> None:
    """Cut a policy up in place: every decoder layer on its own, all else together.

    Args:
        mesh: one axis, over all processes.
        gather: the dtype in which weights travel and compute; None: their own. Gradients are summed in fp32 or wider.
        ready: `ready(module, name)` makes the weights of a module real, just before it is cut up.

    Raises:
        FuserlError: the model's layers are not where they are in transformers' decoders.
    """
    base = causal_lm(model)
    if isinstance(base, FSDPModule):
        return
    found = layers(base)
    if found is None:
        raise FuserlError(
            "no list of decoder layers was found to cut up",
            where=f"architecture `{type(base).__name__}`",
            hint="use `trainer=ddp`, where every process holds the whole model",
        )
    computing = gather or next(base.parameters()).dtype
    summing = torch.promote_types(computing, torch.float32)
    policy = MixedPrecisionPolicy(
        param_dtype=gather, reduce_dtype=None if summing == computing else summing, cast_forward_inputs=False
    )
    names = {layer: name for name, layer in base.named_modules()}
    for layer in found:
        ready(layer, names[layer])
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    ready(base, "")
    base.inside = MethodType(_inside, base)
    fully_shard(base, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(base, "inside")


def _inside(base: nn.Module, function: Callable[[], Any]) -> Any:
    return function()


def whole(model: Any, function: Callable[[], Any]) -> Any:
    """`function()`, while the root's weights are there; nothing else happens to a model that is not cut up.

    All processes must call it, and call the same layers in it, because they gather together.
    """
    base = causal_lm(model)
    if not isinstance(base, FSDPModule):
        return function()
    found = base.inside(function)
    if not torch.is_grad_enabled():
        base.reshard()  # no backward will
    return found


@dataclass(frozen=True)
class Gathered:
    """Another scoring, for a policy that is cut up."""

    scoring: Scoring

    def score(self, model: nn.Module, batch: GroupBatch) -> Float[Tensor, " U"]:
        """See `Scoring`."""
        return whole(model, lambda: self.scoring.score(model, batch))

    def loss(self, model: nn.Module, batch: GroupBatch, loss: TableLoss) -> PackLoss:
        """See `Scoring`."""
        return whole(model, lambda: self.scoring.loss(model, batch, loss))

    def support(self, model: nn.Module, batch: GroupBatch, temperature: Number) -> Policy:
        """See `Scoring`."""
        return whole(model, lambda: self.scoring.support(model, batch, temperature))


def first_ones(value: Tensor) -> Tensor:
    """The first process's, for all: what decides how often layers are called must be the same."""
    value = value.contiguous()
    torch.distributed.broadcast(value, src=0)
    return value


def is_sharded(model: nn.Module) -> bool:
    """Whether it is cut up, by FSDP2 or by DeepSpeed's ZeRO-3, which marks weights with an id."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def of_each_in_turn(parts: Iterable[Tensor], function: Callable[[Tensor], str]) -> list[str]:
    """`function` of tensors that are put together one at a time, the processes taking turns to compute it; all get all."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine: dict[int, str] = {}
    with ThreadPoolExecutor(1) as thread:
        turn: tuple[int, Future[str]] | None = None
        for place, part in enumerate(parts):
            together = full(part)
            if place % count == rank:
                if turn:
                    mine[turn[0]] = turn[1].result()  # one at a time is held
                turn = place, thread.submit(function, together)
        if turn:
            mine[turn[0]] = turn[1].result()
    theirs: list[dict[int, str]] = [{}] * count
    torch.distributed.all_gather_object(theirs, mine)
    found = {place: value for one in theirs for place, value in one.items()}
    return [found[place] for place in sorted(found)]


def trained_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Trained weights and buffers that are saved, put together in this process's main memory.

    Args:
        keep: whether this process wants them; all must call, as they gather together, one weight at a time.
    """
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    found = {}
    for name, part in model.state_dict(keep_vars=True).items():
        if name not in frozen:
            together = full(part)
            if keep:
                found[name] = together.detach().cpu()
    return found


def full(part: Tensor) -> Tensor:
    """A weight put together, in every process; all call it."""
    if isinstance(part, DTensor):
        return part.full_tensor()
    if hasattr(part, "ds_id"):
        import deepspeed  # type: ignore[import-not-found]

        with deepspeed.zero.GatheredParameters([part]):
            return part.detach().clone()
    return part

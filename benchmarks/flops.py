"""Matrix-product FLOPs of one optimiser step in each way of running it, by the formula of `fuserl.training.flops`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from benchmarks.groups import Lengths
from benchmarks.models import config_of
from fuserl.training.flops import Products, training_flops
from fuserl.training.flops import Work as Useful


def products_of(size: str) -> Products:
    """Of a random model's shape; no weight is made."""
    with torch.device("meta"):
        return Products.of(AutoModelForCausalLM.from_config(config_of(size)))


@dataclass(frozen=True)
class Work:
    """What one way of running a step puts through the model.

    Attributes:
        decoder: tokens through the layers.
        attended: (query, key) pairs in every layer, the causal half alone.
        head: tokens through the head.
        head_passes: products a head's token costs: 3 (forward and two backward), 4 where backward computes logits anew.
    """

    decoder: int
    attended: int
    head: int
    head_passes: int

    def flops(self, model: Products) -> float:
        """Forward and backward."""
        layers = training_flops(model, Useful(self.decoder, self.attended * len(model.windows), 0))
        return float(layers + 2 * self.head_passes * self.head * model.head)


def triangle(length: int) -> int:
    """Pairs that causal attention over so many tokens computes."""
    return length * (length + 1) // 2


def shared(groups: Sequence[Lengths], *, head_passes: int = 3) -> Work:
    """Each prompt once, the head on trained tokens: what packs do."""
    attended = sum(
        triangle(one.prompt) + sum(triangle(one.prompt + size) - triangle(one.prompt) for size in one.responses)
        for one in groups
    )
    trained = sum(sum(one.responses) for one in groups)
    return Work(sum(one.prompt for one in groups) + trained, attended, trained, head_passes)


def separate(groups: Sequence[Lengths], *, head_passes: int) -> Work:
    """Every response with its own prompt, unpadded, the head on all tokens."""
    sizes = [one.prompt + size for one in groups for size in one.responses]
    return Work(sum(sizes), sum(map(triangle, sizes)), sum(sizes), head_passes)


def padded(groups: Sequence[Lengths], rows: int, *, head_passes: int) -> Work:
    """So many sequences at a time, neighbours of the file, each padded to the longest, the head on all tokens."""
    sizes = [one.prompt + size for one in groups for size in one.responses]
    parts = [sizes[at : at + rows] for at in range(0, len(sizes), rows)]
    widths = [max(part) for part in parts for _ in part]
    return Work(sum(widths), sum(map(triangle, widths)), sum(widths), head_passes)


def ladder(
    groups: Sequence[Lengths], rows: int, *, peer_passes: int, peer_head_all: bool
) -> Iterator[tuple[str, Work]]:
    """From a peer's way of running to ours, one change at a time, each named by what it changes.

    Args:
        rows: sequences of the peer's micro-batch.
        peer_passes: products a token costs in the peer's head.
        peer_head_all: whether the peer's head computes all positions, or the trained ones alone.
    """
    ours = shared(groups)

    def peer(work: Work) -> Work:
        return Work(work.decoder, work.attended, work.head if peer_head_all else ours.head, peer_passes)

    yield "", peer(padded(groups, rows, head_passes=peer_passes))
    apart = peer(separate(groups, head_passes=peer_passes))
    yield "no padding", apart
    once = Work(ours.decoder, ours.attended, ours.decoder if peer_head_all else ours.head, peer_passes)
    yield "prompts once", once
    yield "head on trained tokens", Work(ours.decoder, ours.attended, ours.head, peer_passes)
    yield "logits once", ours


def factors(
    groups: Sequence[Lengths], rows: int, model: Products, *, peer_passes: int, peer_head_all: bool
) -> dict[str, float]:
    """By how much each change divides the FLOPs of a step; their product is the whole token arithmetic."""
    steps = list(ladder(groups, rows, peer_passes=peer_passes, peer_head_all=peer_head_all))
    flops = [work.flops(model) for _, work in steps]
    return {steps[i][0]: flops[i - 1] / flops[i] for i in range(1, len(steps))}

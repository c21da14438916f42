"""Matrix-product FLOPs by counting: of one optimiser step in each way of running it, and of the model's shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PretrainedConfig

from benchmarks.groups import Lengths


class Product(NamedTuple):
    """[tokens, k] times [k, n]."""

    k: int
    n: int

    @property
    def flops(self) -> int:
        """For one token."""
        return 2 * self.k * self.n


def layer_products(config: PretrainedConfig) -> list[Product]:
    """Of one decoder layer: queries, keys, values, output, gate, up, down."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = [Product(width, queries), Product(width, keys), Product(width, keys), Product(queries, width)]
    return [*attention, Product(width, inner), Product(width, inner), Product(inner, width)]


def head_product(config: PretrainedConfig) -> Product:
    """Hidden state to logits."""
    return Product(config.hidden_size, config.vocab_size)


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

    def flops(self, config: PretrainedConfig) -> float:
        """Forward and backward."""
        linear = self.decoder * sum(product.flops for product in layer_products(config))
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = 4 * self.attended * config.num_attention_heads * head_width
        layers = 3 * config.num_hidden_layers * (linear + attention)
        return float(layers + self.head_passes * self.head * head_product(config).flops)


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
    groups: Sequence[Lengths], rows: int, config: PretrainedConfig, *, peer_passes: int, peer_head_all: bool
) -> dict[str, float]:
    """By how much each change divides the FLOPs of a step; their product is the whole token arithmetic."""
    steps = list(ladder(groups, rows, peer_passes=peer_passes, peer_head_all=peer_head_all))
    flops = [work.flops(config) for _, work in steps]
    return {steps[i][0]: flops[i - 1] / flops[i] for i in range(1, len(steps))}

"""Sequences that are decoded together: a table whose rows all end in the same column.

row 0   p p p p p a a        p: prompt, a: answer so far
row 1   . . . p p p a        it entered later or its prompt is shorter, so it is padded on the left
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

CHUNK = 4096  # columns of prompts computed in one forward: masks are as large as its square
ROOM = 16  # columns to come, at least, when keys and values are laid out


@dataclass(eq=False)
class Table:
    """B rows of W columns and what the model keeps of them."""

    start: list[int]  # column of each row's first token
    ids: Int[Tensor, "B W"]  # to the left of its start a row repeats its first token
    cache: Any
    logits: Float[Tensor, "B V"]  # of the next token


class Runner:
    """A causal LM that fills tables.

    Args:
        context: positions it knows; null: any number.
    """

    def __init__(self, model: Any, context: int | None) -> None:
        self.model, self.context = model.eval(), context
        self.device = next(model.parameters()).device
        self.mixes = _mixes_lengths(model)  # prompts of different lengths may stand in one table, and rows may leave it

    def begin(self, prompts: Sequence[Sequence[int]]) -> Table:
        """A table of prompts."""
        width = max(map(len, prompts))
        start = [width - len(prompt) for prompt in prompts]
        rows = [[prompt[0]] * left + list(prompt) for left, prompt in zip(start, prompts, strict=True)]
        ids = torch.tensor(rows, device=self.device)
        if not self.mixes:
            return self._run(start, ids, ids, None)
        table = self._run(start, ids[:, :CHUNK], ids[:, :CHUNK], Cache(layer_class_to_replicate=Columns))
        for end in range(2 * CHUNK, width + CHUNK, CHUNK):
            table = self._run(start, ids[:, :end], ids[:, end - CHUNK : end], table.cache)
        return table

    def advance(self, table: Table, tokens: Int[Tensor, " B"]) -> Table:
        """One more column."""
        ids = torch.cat([table.ids, tokens[:, None]], dim=1)
        given = ids if table.cache is None else tokens[:, None]  # states of another kind are computed anew
        return self._run(table.start, ids, given, table.cache)

    def _run(self, start: list[int], ids: Tensor, given: Tensor, cache: Any) -> Table:
        places: dict[str, Any] = {}
        if self.mixes:
            columns, first = torch.arange(ids.shape[1], device=self.device), torch.tensor(start, device=self.device)
            places["attention_mask"] = columns >= first[:, None] if any(start) else None
            positions = columns[-given.shape[1] :] - first[:, None]
            places["position_ids"] = positions.clamp(min=0, max=self.context and self.context - 1)
        out = self.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1, **places)
        return Table(start, ids, getattr(out, "past_key_values", None), out.logits[:, -1])


def composed(parts: Sequence[tuple[Table, list[int]]]) -> Table:
    """Rows of several tables in one, a row more than once where it is named so; columns that none needs go."""
    (table, places), *others = parts
    if not others and places == list(range(len(table.start))):
        return table
    width = max(part.ids.shape[1] - min(part.start[place] for place in places) for part, places in parts)
    layers = [[part.cache.layers[number] for part, _ in parts] for number in range(len(table.cache.layers))]
    chosen = [torch.tensor(places, device=table.ids.device) for _, places in parts]
    ids = torch.cat([_as_wide(part.ids[index], width) for (part, _), index in zip(parts, chosen, strict=True)])
    for layer, *further in layers:
        if layer.is_initialized:  # some layers have no keys of their own
            keys = _laid_out([one.keys for one in (layer, *further)], chosen, width)
            values = _laid_out([one.values for one in (layer, *further)], chosen, width)
            layer.hold(keys, values, width)
    start = [part.start[place] + width - part.ids.shape[1] for part, places in parts for place in places]
    logits = torch.cat([part.logits[index] for (part, _), index in zip(parts, chosen, strict=True)])
    return Table(start, ids, table.cache, logits)


class Columns(DynamicLayer):
    """Keys and values with room for columns to come: a new one is written, the others stay where they are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """transformers' cache interface: [B, H, Q, D] in, [B, H, W, D] out."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return self.hold(key_states, value_states, key_states.shape[-2])
        used = self.get_seq_length()
        width = used + key_states.shape[-2]
        if width > self.room[0].shape[-2]:
            self.room = _laid_out([self.keys], [slice(None)], used), _laid_out([self.values], [slice(None)], used)
        for whole, new in zip(self.room, (key_states, value_states), strict=True):
            whole[:, :, used:width] = new
        return self.hold(*self.room, width)

    def hold(self, keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Have these, of which so many columns are in use."""
        self.room = keys, values
        self.keys, self.values = held = keys[:, :, :width], values[:, :, :width]
        return held


def _laid_out(states: Sequence[Tensor], chosen: Sequence[Any], width: int) -> Tensor:
    """Rows of several [B, H, W, D] that end in the same column, with room behind it."""
    parts = [one[index, :, -width:] for one, index in zip(states, chosen, strict=True)]
    rows, at = sum(map(len, parts)), 0
    whole = parts[0].new_empty(rows, parts[0].shape[1], width + max(ROOM, width // 8), parts[0].shape[3])
    for part in parts:
        left = width - part.shape[2]
        whole[at : at + len(part), :, :left] = 0  # nobody looks there, but nothing times NaN is NaN
        whole[at : at + len(part), :, left:width] = part
        at += len(part)
    return whole


def _as_wide(ids: Tensor, width: int) -> Tensor:
    left = width - ids.shape[1]
    return torch.cat([ids[:, :1].expand(-1, left), ids], dim=1) if left > 0 else ids[:, -width:]


def _mixes_lengths(model: Any) -> bool:
    """It keeps keys and values alone, and is told positions."""
    if getattr(model, "_is_stateful", False) or "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

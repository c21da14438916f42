"""Many answers with the model in memory: finished sequences leave the batch and waiting ones enter.

An answer depends on its own prompt, settings and seed alone; others in the batch change no more than rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from fuserl.models.drawing import Drawing, drawn, rules_of
from fuserl.models.table import Runner, Table, composed

SLACK = 4  # the batch is composed anew when one of so many rows is over
PREFILL = 1 << 14  # prompt tokens computed in one forward
ALIKE = 0.75  # prompts computed together are at least so long, as a share of the longest


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer wanted."""

    prompt: tuple[int, ...]  # token ids, at least one
    most: int  # new tokens at most, at least one
    drawing: Drawing
    seed: int
    tag: Any = None  # the caller's

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return len(self.prompt) + self.most


@dataclass(eq=False, slots=True)
class Row:
    """A sequence on its way."""

    wanted: Wanted
    noise: Random
    tokens: list[int] = field(default_factory=list)  # of the answer
    over: bool = False


class Batch:
    """Sequences on their way together."""

    def __init__(self, rows: list[Row], table: Table) -> None:
        self.rows, self.table = rows, table
        self.rules = rules_of([row.wanted.drawing for row in rows], table.ids.device)

    def draw(self) -> Tensor:
        """The next token of each row, [B]; that of a row that is over means nothing."""
        numbers = torch.tensor([0.0 if row.over else row.noise.random() for row in self.rows], dtype=torch.float64)
        said = None
        if self.rules.counting:
            said = torch.tensor([len(row.tokens) for row in self.rows], device=self.table.ids.device)
        return drawn(self.table.logits, self.table.ids, self.rules, numbers, said)

    def going(self) -> tuple[list[Row], list[tuple[Table, list[int]]]]:
        """The rows that are not over, and where they stand."""
        places = [place for place, row in enumerate(self.rows) if not row.over]
        return [self.rows[place] for place in places], [(self.table, places)] if places else []


class Decoder:
    """A causal LM that answers.

    Args:
        stop_ids: tokens that end an answer; they are its last.
        batch_tokens: of prompts and whole answers in memory together; a longer one is decoded alone.
        context: positions the model knows; null: any number.
        ends: whether an answer is over after these tokens for another reason.
    """

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: set[int],
        batch_tokens: int,
        context: int | None,
        ends: Callable[[Wanted, list[int]], bool],
    ) -> None:
        self.stop_ids, self.batch_tokens, self.ends = stop_ids, batch_tokens, ends
        self.runner = Runner(model, context)

    @torch.inference_mode()
    def answers(self, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[int]]]:
        """Token ids of each answer as it ends, in any order; `wanted` is drawn as places become free."""
        source, waiting = iter(wanted), deque[Wanted]()
        batch = self._composed(None, source, waiting)
        while batch:
            tokens = batch.draw()
            yield from self._ended(batch.rows, tokens.tolist())
            over = sum(row.over for row in batch.rows)
            if over < len(batch.rows):
                batch.table = self.runner.advance(batch.table, tokens)
            if over == len(batch.rows) or (self.runner.mixes and over * SLACK >= len(batch.rows)):
                batch = self._composed(batch, source, waiting)

    def _ended(self, rows: list[Row], tokens: list[int]) -> Iterator[tuple[Wanted, list[int]]]:
        for row, token in zip(rows, tokens, strict=True):
            if row.over:
                continue
            row.tokens.append(token)
            full = len(row.tokens) == row.wanted.most
            row.over = full or token in self.stop_ids or self.ends(row.wanted, row.tokens)
            if row.over:
                yield row.wanted, row.tokens

    def _composed(self, batch: Batch | None, source: Iterator[Wanted], waiting: deque[Wanted]) -> Batch | None:
        """Those that go on and those that fit beside them; None where there are none."""
        rows, parts = batch.going() if batch else ([], [])
        for entering in _alike(self._entering([row.wanted for row in rows], source, waiting)):
            parts.append(self._begun([wanted.prompt for wanted in entering]))
            rows += [Row(wanted, Random(wanted.seed)) for wanted in entering]
        return Batch(rows, composed(parts)) if rows else None

    def _begun(self, prompts: list[tuple[int, ...]]) -> tuple[Table, list[int]]:
        """Their table and the row of each; equal ones share a row where it can be copied later."""
        if not self.runner.mixes:
            return self.runner.begin(prompts), list(range(len(prompts)))
        number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        return self.runner.begin(list(number)), [number[prompt] for prompt in prompts]

    def _entering(self, going: list[Wanted], source: Iterator[Wanted], waiting: deque[Wanted]) -> list[Wanted]:
        """As many as there is room for, one at least; of one length where lengths do not mix."""
        taken: list[Wanted] = []
        longest = max((wanted.longest for wanted in going), default=0)
        while following := waiting.popleft() if waiting else next(source, None):
            longest, num = max(longest, following.longest), len(going) + len(taken) + 1
            if num > 1 and num * longest > self.batch_tokens:
                waiting.appendleft(following)
                break
            taken.append(following)
        if self.runner.mixes:
            return taken
        waiting.extendleft(wanted for wanted in reversed(taken) if len(wanted.prompt) != len(taken[0].prompt))
        return [wanted for wanted in taken if len(wanted.prompt) == len(taken[0].prompt)]


def _alike(entering: list[Wanted]) -> Iterator[list[Wanted]]:
    """Prompts of similar lengths together, so that little is padded."""
    part: list[Wanted] = []
    for wanted in sorted(entering, key=lambda wanted: -len(wanted.prompt)):
        longest = len(part[0].prompt) if part else 0
        if part and (len(wanted.prompt) < ALIKE * longest or (len(part) + 1) * longest > PREFILL):
            yield part
            part = []
        part.append(wanted)
    if part:
        yield part

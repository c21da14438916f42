"""A token store of any size whose groups are all of one shape, without a text: what plans at scale are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fuserl.tokens.columns import Strings
from fuserl.tokens.store import TokenStore


class Uniform(TokenStore):
    """Prompts of so many tokens with so many answers each of so many tokens, one a source; rewards differ."""

    def __init__(self, folder: Path, prompts: int, answers: int, prompt_tokens: int, answer_tokens: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.digest = folder, f"uniform-{prompts}-{answers}-{prompt_tokens}-{answer_tokens}"
        self.sources, self.domain_names, self.notes = [f"s{n}" for n in range(answers)], ["any"], {"skipped": []}
        shape, column = (prompts, answers), np.arange(answers)
        names = np.char.zfill(np.arange(prompts).astype(str), 8)
        self.ids = Strings(np.frombuffer("".join(names).encode(), np.uint8), 8 * np.arange(1, prompts + 1))
        self.domain = np.zeros(prompts, np.int32)
        self.prompt_tokens = np.full(prompts, prompt_tokens, np.int32)
        self.rewards = np.broadcast_to(column / answers, shape).astype(np.float64)
        self.given = np.full(shape, np.nan)
        self.source = np.broadcast_to(column, shape).astype(np.int32)
        self.valid, self.verdict = np.ones(shape, bool), np.full(shape, -1, np.int8)
        self.num_tokens = self.branch_tokens = np.full(shape, answer_tokens, np.int32)
        self.untrained = np.zeros(shape, np.int32)
        self.duplicate_of = np.broadcast_to(column, shape).astype(np.int32)
        self.keys = np.zeros((*shape, 16), np.uint8)

    def prompt(self, row: int) -> np.ndarray:
        """Zeros."""
        return np.zeros(self.prompt_tokens[row], np.int32)

    def branch(self, row: int, column: int) -> np.ndarray:
        """Zeros."""
        return np.zeros(self.branch_tokens[row, column], np.int32)

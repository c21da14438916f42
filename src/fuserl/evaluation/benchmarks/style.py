"""How an answer looks, whatever it says: its length and its Markdown, and how two answers differ in that.

Arena-Hard's features: tokens, headers of each level, ordered and unordered list items, bold spans; all but the tokens are
counted outside code blocks. Every pattern is read in linear time: answers are written by models, and may be hostile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fuserl.errors import FuserlError

FEATURES = ("length", "headers", "lists", "bold")  # the columns of differences

FENCE = "```"
HEADER = re.compile(r"^(#{1,6})(?=\s)", re.MULTILINE)
ORDERED = re.compile(r"^[^\S\n]*\d+\.\s", re.MULTILINE)
UNORDERED = re.compile(r"^[^\S\n]*[-*+]\s", re.MULTILINE)
STARS = re.compile(r"\*\*[^*\n]+\*\*")
LINES = re.compile(r"__[^_\n]+__")
# Words, single signs, and single letters of scripts without spaces: one each.
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")

Count = Callable[[str], int]  # tokens of a text
Differences = Callable[[ndarray, ndarray], ndarray]  # [N, 4] of the one, [N, 4] of the other -> [N, 4]


class Style(NamedTuple):
    """What is counted in one answer."""

    tokens: int
    headers: dict[str, int]  # h1 to h6
    lists: dict[str, int]  # ordered, unordered
    bold: dict[str, int]  # **, __

    def row(self) -> tuple[int, int, int, int]:
        """Totals, in the order of FEATURES."""
        return self.tokens, sum(self.headers.values()), sum(self.lists.values()), sum(self.bold.values())

    def plain(self) -> dict[str, Any]:
        """As Arena-Hard's files of answers name them."""
        return {
            "token_len": self.tokens,
            "header_count": self.headers,
            "list_count": self.lists,
            "bold_count": self.bold,
        }


def words_and_signs(text: str) -> int:
    """A count of tokens that needs no tokenizer: words, punctuation signs and East Asian letters, one each.

    >>> words_and_signs("It's 4."), words_and_signs("你好")
    (5, 2)
    """
    return sum(1 for _ in PIECE.finditer(text))


def tokens(text: str, *, encoding: str) -> int:
    """Tokens by OpenAI's tiktoken, whose file of the encoding is downloaded once.

    Args:
        encoding: cl100k_base (v0.1's files) or o200k_base (v2's).

    Raises:
        FuserlError: the encoding is unknown, or cannot be downloaded.
    """
    return len(_encoding(encoding).encode(text, disallowed_special=()))


@lru_cache
def _encoding(name: str) -> Any:
    import tiktoken

    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # of requests and the file system, and ValueError: there is no common class
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise FuserlError(
            f"the encoding `{name}` cannot be had ({why})",
            where="`count.encoding`",
            hint="without a network, count by `fuserl.evaluation.benchmarks.style.words_and_signs`",
        ) from error


def style_of(text: str, count: Count) -> Style:
    """The features of an answer."""
    told = without_code(text)
    levels = Counter(f"h{len(found[1])}" for found in HEADER.finditer(told))
    return Style(
        count(text),
        {f"h{level}": levels[f"h{level}"] for level in range(1, 7)},
        {"ordered": _number(ORDERED, told), "unordered": _number(UNORDERED, told)},
        {"**": _number(STARS, told), "__": _number(LINES, told)},
    )


def without_code(text: str) -> str:
    """The text without its fenced blocks; a fence that is never closed is text.

    >>> without_code("a ```# b``` c ```d")
    'a  c ```d'
    """
    parts = text.split(FENCE)
    if len(parts) % 2 == 0:
        parts[-2:] = [FENCE.join(parts[-2:])]
    return "".join(parts[::2])


def _number(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def rows(styles: Sequence[Style]) -> Float[ndarray, "N 4"]:
    """The totals of many answers."""
    return np.array([style.row() for style in styles], dtype=np.float64).reshape(len(styles), len(FEATURES))


def by_count(ours: Float[ndarray, "N 4"], theirs: Float[ndarray, "N 4"]) -> Float[ndarray, "N 4"]:
    """(a - b) / (a + b + 1) of each feature: Arena-Hard v0.1."""
    return (ours - theirs) / (ours + theirs + 1)


def by_density(ours: Float[ndarray, "N 4"], theirs: Float[ndarray, "N 4"]) -> Float[ndarray, "N 4"]:
    """(a - b) / (a + b) of the lengths, (a - b) / (a + b + 1) of the marks a token: Arena-Hard v2."""
    dense = [np.column_stack([side[:, :1], side[:, 1:] / np.maximum(side[:, :1], 1)]) for side in (ours, theirs)]
    plus = np.array([0.0, 1.0, 1.0, 1.0])
    sums = dense[0] + dense[1] + plus
    return np.divide(dense[0] - dense[1], sums, out=np.zeros_like(sums), where=sums > 0)


def standardised(differences: Float[ndarray, "N C"]) -> Float[ndarray, "N C"]:
    """Over their standard deviation, not less their mean: 0 stays "they look the same".

    The original takes the mean off as well. With many models on both sides of its games that mean is near 0; with one model
    against one baseline it is that model's own style, and taking it off would leave the win rate as it was.
    """
    spread = differences.std(axis=0)
    return np.divide(differences, spread, out=np.zeros_like(differences), where=spread > 0)

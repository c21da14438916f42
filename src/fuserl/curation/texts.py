"""How texts are compared: what is one and the same text, what is a word of it, and how it is shown in a report."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache

import numpy as np
from jaxtyping import UInt8

from fuserl.records.schema import PromptGroup

# Kinds of character: runs of letters and runs of digits are words, every symbol and every ideograph is one.
NOTHING, LETTERS, DIGITS, SYMBOL, IDEOGRAPH = range(5)
_KINDS = {"L": LETTERS, "M": LETTERS, "N": DIGITS, "P": SYMBOL, "S": SYMBOL}  # by Unicode's category
_WITHOUT_SPACES = (  # blocks of scripts that put no spaces between words: each of their letters is a word
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip  # Thai and Lao, Tibetan, Burmese, Khmer, radicals, iteration marks, kana to bopomofo, Han three times, rare Han


def normalised(text: str) -> str:
    """Equal for texts that differ in case, spacing or Unicode form alone (NFKC, case folding).

    >>> normalised("  Ｈello\\n WORLD ")
    'hello world'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    for _ in range(2):  # a folded character may have another form still, and that be folded further
        text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())


def digest(text: str, space: str = "") -> bytes:
    """16 bytes that stand for a normalised text among the texts of its space; spaces keep equal texts apart."""
    content = f"{space}\0{text}" if space else text
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@cache
def kinds() -> UInt8[np.ndarray, " characters"]:
    """The kind of each of the 1,114,112 Unicode characters, by its number. A quarter of a second, once."""
    found = np.fromiter(
        (_KINDS.get(unicodedata.category(chr(code))[0], NOTHING) for code in range(sys.maxunicode + 1)), np.uint8
    )
    for first, last in _WITHOUT_SPACES:
        block = found[first : last + 1]
        block[block == LETTERS] = IDEOGRAPH
    return found


def words(text: str, *, symbols: bool = True) -> list[str]:
    """The words of a normalised text: runs of letters, runs of digits, single symbols, single ideographs.

    Args:
        symbols: count symbols as words; otherwise they only separate.

    >>> words(normalised("Is 12kg > 3.5 学生?"))
    ['is', '12', 'kg', '>', '3', '.', '5', '学', '生', '?']
    """
    table, found, last = kinds(), [], NOTHING
    for sign in text:
        kind = int(table[ord(sign)])
        if kind == last and kind in (LETTERS, DIGITS):
            found[-1] += sign
        elif kind != NOTHING and (symbols or kind != SYMBOL):
            found.append(sign)
        last = kind
    return found


def prompt_text(group: PromptGroup) -> str:
    """All that a prompt says, in the order of its turns."""
    return "\n".join(message.content for message in group.prompt)


def excerpt(text: str, signs: int = 80) -> str:
    """A text for a report: on one line, cut, without characters that act on a terminal or on the order of others.

    >>> excerpt("one\\ntwo \\x1b[31mred", 12)
    'one two �[3…'
    """
    line = " ".join(text[: 4 * signs].split())
    shown = "".join(sign if sign == " " or unicodedata.category(sign)[0] not in "CZ" else "�" for sign in line)
    return shown if len(shown) <= signs and len(text) <= 4 * signs else shown[: signs - 1].rstrip() + "…"

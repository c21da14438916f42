"""What a token is in text, whatever mark its tokenizer writes for a space, a byte or a control.

SentencePiece writes a space as U+2581, byte-level BPE every byte as a printable letter (a space as U+0120), byte fallback
a byte as `<0xE4>`. Here every token is the bytes it adds to a text; a token may be a piece of one character.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fuserl.distributions.alignment import Ids
from fuserl.errors import FuserlError

SPACE = "▁"  # SentencePiece's mark
BYTE_SPACE = "Ġ"  # byte-level BPE's
ROLES = ("bos", "eos", "unk", "pad")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> dict[str, int]:
    """The printable letters of byte-level BPE and the bytes they stand for.

    >>> byte_letters()["Ġ"], byte_letters()["a"]
    (32, 97)
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a tokenizer, by id."""

    pieces: tuple[bytes, ...]  # what it adds to a text; empty for special tokens and for ids without a token
    names: tuple[str, ...]  # as the vocabulary writes it; empty for ids without a token
    special: frozenset[int]  # tokens that control, and ids without a token
    byte_fallback: frozenset[int] = frozenset()  # tokens of one byte beside tokens of text
    roles: Mapping[str, int] = field(default_factory=dict)  # "bos", "eos", "unk", "pad" -> id, where there is one

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every token alone as text, with its spaces: special ones by name, bytes that are no text each a surrogate."""
        return tuple(
            self.names[token] if token in self.special else piece.decode("utf-8", "surrogateescape")
            for token, piece in enumerate(self.pieces)
        )

    @cached_property
    def bare(self) -> tuple[str, ...]:
        """`texts` without the word-boundary mark, a space: what dynamic time warping compares (FuseChat, step 1)."""
        return tuple(text.replace(" ", "") for text in self.texts)

    @cached_property
    def digest(self) -> str:
        """Of all of it."""
        content = [self.names, [piece.hex() for piece in self.pieces], sorted(self.special), dict(self.roles)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def require(self, ids: Ids, where: str = "") -> None:
        """Every id is one of this vocabulary.

        Raises:
            FuserlError: one is not.
        """
        wrong = next((token for token in ids if not 0 <= token < len(self)), None)
        if wrong is not None:
            raise FuserlError(
                f"token {int(wrong)} is not in a vocabulary of {len(self)}",
                where=where,
                hint="the tokens were made by another tokenizer",
            )


def of_bytes(pieces: Sequence[bytes], special: Mapping[int, str] | None = None) -> Vocabulary:
    """A vocabulary whose tokens are known as bytes: tiktoken ranks, RWKV.

    Args:
        special: id -> name of the tokens that add nothing to a text.
    """
    special = dict(special or {})
    names = tuple(special.get(token, repr(piece)[2:-1]) for token, piece in enumerate(pieces))
    plain = tuple(b"" if token in special else bytes(piece) for token, piece in enumerate(pieces))
    return Vocabulary(plain, names, frozenset(special))


def of_strings(
    names: Sequence[str | None],
    *,
    special: Collection[int] = (),
    literal: Collection[int] = (),
    roles: Mapping[str, int] | None = None,
) -> Vocabulary:
    """A vocabulary as its tokenizer writes it; what marks it uses is seen from its tokens.

    Args:
        names: by id; None where an id has no token.
        special: tokens that control.
        literal: added tokens, which stand for their own letters.

    Raises:
        FuserlError: there is no token at all.
    """
    written = tuple(name or "" for name in names)
    control = frozenset(special) | {token for token, name in enumerate(written) if not name}
    ordinary = [token for token in range(len(written)) if token not in control and token not in set(literal)]
    if not ordinary:
        raise FuserlError("the vocabulary has no ordinary token", hint="give a tokenizer that was trained")
    spaced = sum(SPACE in written[token] for token in ordinary)
    lettered = sum(BYTE_SPACE in written[token] for token in ordinary)
    read = _byte_level if lettered > spaced else _marked if spaced else str.encode
    pieces = [b""] * len(written)
    for token in ordinary:
        pieces[token] = read(written[token])
    for token in set(literal) - control:
        pieces[token] = written[token].encode()
    fallback = frozenset(token for token in ordinary if read is _marked and _BYTE.fullmatch(written[token]))
    return Vocabulary(tuple(pieces), written, control, fallback, dict(roles or {}))


def of_tokenizer(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a `transformers` tokenizer, fast or slow.

    Raises:
        FuserlError: it has no token.
    """
    known = tokenizer.get_vocab()
    names: list[str | None] = [None] * (max(known.values(), default=-1) + 1)
    for name, token in known.items():
        names[token] = name
    added = tokenizer.added_tokens_decoder
    for token, content in added.items():
        names[token] = content.content
    special = {token for token, content in added.items() if content.special} | set(tokenizer.all_special_ids)
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    found = {role: int(token) for role, token in roles.items() if token is not None}
    return of_strings(names, special=special, literal=set(added) - special, roles=found)


_LETTERS = byte_letters()


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_LETTERS[letter] for letter in name)
    except KeyError:  # no letter of a byte: a token that was added by hand
        return name.encode()


def _marked(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(SPACE, " ").encode()

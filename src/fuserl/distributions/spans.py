"""Which bytes of a text each of its tokens covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fuserl.distributions.alignment import Ids
from fuserl.distributions.marks import SPACE, Vocabulary
from fuserl.errors import FuserlError

WINDOW = 64  # bytes in which a token that a normaliser changed is looked for
MARK = SPACE.encode()
Spans = Int[np.ndarray, "tokens 2"]


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> tuple[list[int], list | None]:
    """Token ids of a text, and their offsets in letters where the tokenizer is a fast one.

    Raises:
        FuserlError: the text is no valid Unicode.
    """
    utf8(text)
    if not getattr(tokenizer, "is_fast", False):
        return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]), None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    made = backend.encode(text, add_special_tokens=add_special_tokens)
    return made.ids, made.offsets


def token_spans(text: str, ids: Ids, vocabulary: Vocabulary, offsets: Sequence | None = None) -> Spans:
    """Start and end byte of every token; starts and ends never go back.

    Tokens that spell the text get their own bytes, also where several make one character. Where a normaliser changed
    the text, the fast tokenizer's offsets (in letters) stand; without them tokens are looked for a little ahead, and
    those that are not found share what lies between their neighbours. A special token covers its name where
    the text has it there, else nothing.

    Raises:
        FuserlError: the text is no valid Unicode, or an id is not in the vocabulary.
    """
    content = utf8(text)
    vocabulary.require(ids)
    spelled = _spelled(content, ids, vocabulary)
    if spelled is None and MARK in content:  # SentencePiece reads its own mark as a space
        spelled = _spelled(content.replace(MARK, b" "), ids, vocabulary)
        spelled = None if spelled is None else _places_without(content)[spelled]
    if spelled is not None:
        return spelled
    if offsets is None:
        return _searched(content, ids, vocabulary)
    starts = np.zeros(len(text) + 1, dtype=np.int64)  # byte where each letter begins
    np.cumsum([len(letter.encode()) for letter in text], out=starts[1:])
    return _forward(starts[np.array(offsets, dtype=np.int64).reshape(-1, 2)], content)


def utf8(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        FuserlError: it has a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FuserlError(
            f"a text has half of a character (letter {error.start})",
            hint="the text was cut or decoded wrongly; make it valid UTF-8",
        ) from error


def _spelled(content: bytes, ids: Ids, vocabulary: Vocabulary) -> Spans | None:
    """Spans of tokens that spell the text one after the other, None where they do not."""
    pieces, special, starts_with = vocabulary.pieces, vocabulary.special, content.startswith
    ends, at = [0], 0
    for token in ids:
        piece = pieces[token]
        if token in special:
            name = vocabulary.names[token].encode()
            at += len(name) if name and starts_with(name, at) else 0
        elif starts_with(piece, at):
            at += len(piece)
        elif piece[:1] == b" " and starts_with(piece[1:], at):  # the space that SentencePiece puts before a text
            at += len(piece) - 1
        else:
            return None
        ends.append(at)
    if at < len(content):
        return None
    return np.stack([np.array(ends[:-1], dtype=np.int64), np.array(ends[1:], dtype=np.int64)], axis=1)


def _places_without(content: bytes) -> np.ndarray:
    """Where each byte of the text whose marks are spaces lies in the text itself, and its end."""
    parts = content.split(MARK)
    steps = [np.append(np.ones(len(part), dtype=np.int64), len(MARK)) for part in parts]
    return np.append(0, np.cumsum(np.concatenate(steps)[:-1]))


def _searched(content: bytes, ids: Ids, vocabulary: Vocabulary) -> Spans:
    """Spans of tokens each of which is looked for a little ahead of the one before."""
    spans, at = np.full((len(ids), 2), -1, dtype=np.int64), 0
    for number, token in enumerate(ids):
        piece = vocabulary.names[token].encode() if token in vocabulary.special else vocabulary.pieces[token].strip()
        found = content.find(piece, at, at + len(piece) + WINDOW) if piece else -1
        if found >= 0:
            spans[number] = found, found + len(piece)
            at = found + len(piece)
        elif token in vocabulary.special and token != vocabulary.roles.get("unk"):
            spans[number] = at, at
    nearest = np.where(spans[:, 0] < 0, len(content), spans[:, 0])
    after = np.minimum.accumulate(nearest[::-1])[::-1]  # the next start that is known
    before = np.maximum.accumulate(np.append(0, spans[:, 1]))[:-1]  # the last end that is known
    unknown = spans[:, 0] < 0
    spans[unknown] = np.stack([before, after], axis=1)[unknown]
    return _forward(spans, content)


def _forward(spans: np.ndarray, content: bytes) -> Spans:
    """Starts and ends made to go forward and to leave nothing out; tokens of no width stand where the last one ended.

    What lies between two tokens goes to the one before up to the first white space, the rest to the one behind.
    """
    covering = np.flatnonzero(spans[:, 0] < spans[:, 1])
    result = np.zeros((len(spans), 2), dtype=np.int64)
    if not len(covering):
        return result
    starts, ends = np.maximum.accumulate(spans[covering], axis=0).T
    for gap in np.flatnonzero(starts[1:] > ends[:-1]):
        between = content[ends[gap] : starts[gap + 1]]
        ends[gap] += len(between.split(None, 1)[0]) if between.strip() and not between[:1].isspace() else 0
        starts[gap + 1] = ends[gap]
    starts[0], ends[-1] = 0, len(content)
    result[covering] = np.stack([starts, ends], axis=1)
    empty = np.setdiff1d(np.arange(len(spans)), covering)
    result[empty] = np.maximum.accumulate(result[:, 1])[empty][:, None]
    return result

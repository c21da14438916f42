"""Content is text: what it spells makes no control token.

In guarded text the template's control tokens go by names that nobody writes, and the guarded tokenizer knows them by
these names alone. All else is the tokenizer's own (ids, merges, what happens to whitespace), so that guarded text
without any such content has the tokens that ordinary text has.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from fuserl.records.schema import Message


def control_strings(tokenizer: Any, turn: str, tail: str) -> list[str]:
    """Strings that stand for control tokens, longest first.

    They are the tokenizer's special ones, and those added ones that frame a user's turn or end an answer. Other added
    ones (`<think>`, say) belong to texts, and a plain word is no control even where it has a token of its own.

    Args:
        turn: a user's turn, rendered.
        tail: what the template puts behind an answer.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    others = {token.content for token in tokenizer.added_tokens_decoder.values()} - special
    others = {string for string in others if not re.fullmatch(r"[\w\s]*", string)}
    last = pattern_of(_longest_first(special | others)).search(tail)
    framing = {string for string in others if string in turn or (last and string == last.group())}
    return _longest_first({string for string in (*special, *framing, *tokenizer.all_special_tokens) if string.strip()})


def _longest_first(strings: Iterable[str]) -> list[str]:
    return sorted(strings, key=lambda string: (-len(string), string))


def pattern_of(strings: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the strings, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, strings)) or "(?!)")


def names_for(strings: Sequence[str]) -> dict[str, str]:
    """A name for each control token; new in every process, so that no content can hold one."""
    nonce = secrets.token_hex(8)
    return {string: f"<{nonce}-{number}>" for number, string in enumerate(strings)}


def guarded_tokenizer(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """The tokenizer, knowing its control tokens by other names; its offsets are not trimmed."""
    state = json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        known = names.keys() & vocab.keys()
        for string in known:
            vocab[names[string]] = vocab.pop(string)
        if known and "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not _touches(merge, known)]
    else:  # unigram pieces and their scores: "</s>" is a piece like any other there
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(state))


def _touches(merge: str | list[str], strings: Container[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in strings or right in strings or left + right in strings


class Hidden:
    """Messages whose control strings are hidden from the template, and how to bring them back."""

    def __init__(self, messages: Sequence[Message], controls: re.Pattern[str]) -> None:
        number = 0
        while any(f"\ue000{number}-" in message.content for message in messages):
            number += 1  # private-use characters are somebody's text too
        self.key, self.originals = f"\ue000{number}-", []
        self.messages = [Message(m.role, controls.sub(self._hide, m.content)) for m in messages]

    def _hide(self, found: re.Match[str]) -> str:
        self.originals.append(found.group())
        return f"{self.key}{len(self.originals) - 1}\ue001"

    def restore(self, text: str) -> str:
        """The rendered text with what was hidden."""
        return re.sub(f"{self.key}(\\d+)\ue001", lambda found: self.originals[int(found.group(1))], text)

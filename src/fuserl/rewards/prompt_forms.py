"""How a reward model is shown a prompt and an answer: token ids, the same ones it was trained to read.

Whatever prompt and answer spell, they make no control token; and a text starts with one BOS, or with none where its
tokenizer has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.tokens.templates import Template, Text, load_template

Prompt = tuple[Message, ...]


class Encoded(NamedTuple):
    """Token ids, or why there are none."""

    ids: list[int]
    refused: str = ""


@runtime_checkable
class Form(Protocol):
    """A way to lay out prompt and answer, bound to a tokenizer."""

    def identity(self) -> Mapping[str, Any]:
        """What of it decides the ids."""
        ...

    def encode(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Encoded]:
        """Token ids of (prompt, answer), in order."""
        ...


@dataclass(frozen=True)
class Conversation:
    """The conversation with the answer as its last turn, by a chat template."""

    template: Template

    def identity(self) -> Mapping[str, Any]:
        """Template with its pinned date, and tokenizer, by hash."""
        template = self.template
        return {
            "form": "conversation",
            "template_hash": template.hash,
            "date_string": template.date_string,
            "tokenizer": template.tokenizer_digest[:16],
        }

    def encode(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Encoded]:
        """Ids of the whole conversation, with all that the template puts behind the answer."""
        texts: list[Text] = []
        refusals: dict[int, str] = {}
        for place, (prompt, answer) in enumerate(pairs):
            try:
                texts.append(self.template.conversation_text([*prompt, Message("assistant", answer)]))
            except FuserlError as error:
                refusals[place] = error.what[:200]
                texts.append(Text("", False))
        found = [self.template.with_bos(ids) for ids in self.template.encode(texts)]
        return [Encoded([], refusals[n]) if n in refusals else Encoded(ids) for n, ids in enumerate(found)]


@dataclass(frozen=True)
class Pair:
    """The prompt as the first text and the answer as the second, joined as the tokenizer joins pairs.

    For encoders: `[CLS] prompt [SEP] answer [SEP]` in BERT's case. Turns of a longer conversation are lines.
    """

    tokenizer: Any

    @cached_property
    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        backend = Tokenizer.from_str(json.dumps(state))
        backend.encode_special_tokens = True  # their strings in a text are text
        return backend

    def identity(self) -> Mapping[str, Any]:
        """The tokenizer by hash."""
        digest = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        return {"form": "pair", "tokenizer": digest[:16]}

    def encode(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Encoded]:
        """Ids of both texts together."""
        texts = [("\n".join(message.content for message in prompt), answer) for prompt, answer in pairs]
        return [Encoded(found.ids) for found in self._backend.encode_batch(texts, add_special_tokens=True)]


def chat(tokenizer: Any, *, chat_template: str | None, date_string: str) -> Conversation:
    """User and assistant turns by a chat template, as ArmoRM and Skywork's models read them.

    Args:
        chat_template: null for the tokenizer's own; a path to a .jinja file; or the template itself.

    Raises:
        FuserlError: there is no template.
    """
    return Conversation(load_template(tokenizer, chat_template=chat_template, date_string=date_string))


def plain(tokenizer: Any) -> Conversation:
    """Prompt, newline, answer and the tokenizer's end token, for models without a chat template.

    Raises:
        FuserlError: the tokenizer has no end token.
    """
    return Conversation(load_template(tokenizer, chat_template="plain"))


def pair(tokenizer: Any) -> Pair:
    """Two texts, as the tokenizer joins them."""
    return Pair(tokenizer)

"""Between texts and tokens, for engines that run a model themselves: a prompt's tokens, and an answer's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fuserl.errors import FuserlError
from fuserl.models.load import load_tokenizer
from fuserl.records.schema import Message
from fuserl.sources.protocol import Answer, Failure, Request
from fuserl.sources.source import Source
from fuserl.tokens.templates import Template, Text, load_template

ANCHOR = "a"  # an answer is decoded behind this word too: decoders treat the start of a text apart
REMEMBERED = 256  # prompts: the samples of one follow each other


class Rendering:
    """A tokenizer with its template, for prompts on their way in and answers on their way out."""

    def __init__(self, template: Template) -> None:
        tokenizer, self.template = template.tokenizer, template
        self._backend = tokenizer.backend_tokenizer
        self._anchor = self._backend.encode(ANCHOR, add_special_tokens=False).ids
        self._controls = set(tokenizer.convert_tokens_to_ids(list(template.controls))) | template.stop_ids
        self._prompt = lru_cache(REMEMBERED)(self._encoded)
        self._tail = lru_cache(REMEMBERED)(lambda messages: template.prompt_text(messages, guarded=True).tail)

    def prompt(self, request: Request, context: int | None) -> tuple[int, ...] | Failure:
        """Token ids of the prompt, with one BOS at most; or why it cannot be asked.

        Args:
            context: tokens that prompt and answer may have together; null: any number.
        """
        try:
            prompt = self._prompt(request.messages)
        except FuserlError as error:
            return Failure(request.key, error.what, passing=False)
        if context is not None and len(prompt) >= context:
            what = f"the prompt has {len(prompt)} tokens, prompt and answer may have {context}"
            return Failure(request.key, what, passing=False)
        return prompt

    def answer(
        self, request: Request, ids: Sequence[int], *, sampling: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> Answer:
        """The answer that these tokens are; the one that ended it is counted and not part of the text."""
        text, stopped = self.text(request.messages, ids), ids[-1] in self.template.stop_ids
        ends = [end for stop in request.sampling.stop if (end := text.find(stop)) >= 0]
        return Answer(
            key=request.key,
            text=text[: min(ends)] if ends else text,
            finish_reason="stop" if stopped or ends else "length",
            prompt_tokens=len(self._prompt(request.messages)),
            response_tokens=len(ids),
            sampling=sampling,
            template_hash=self.template.hash,
            extra=extra,
        )

    def text(self, messages: tuple[Message, ...], ids: Sequence[int]) -> str:
        """The text whose tokens, behind this prompt, are these, where there is one; no control tokens.

        Some tokenizers drop a space at the start of what they decode. Whether it belongs to the answer is told by
        tokenising prompt and answer, as training will.
        """
        ids = [token for token in ids if token not in self._controls]
        plain = self.decoded(ids)
        behind = self._backend.decode([*self._anchor, *ids], skip_special_tokens=True).removeprefix(ANCHOR)
        return plain if plain == behind else max(plain, behind, key=lambda text: self._agreeing(messages, text, ids))

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of some tokens, as a decoder gives it that knows nothing of the prompt."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _encoded(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        return tuple(self.template.encode_prompt(messages))

    def _agreeing(self, messages: tuple[Message, ...], text: str, ids: list[int]) -> tuple[bool, int]:
        """Whether the text's tokens, behind the prompt, are those given; and how many are, from the first on."""
        tail = self._tail(messages)
        prompt, whole = self.template.encode([tail, Text(tail.text + text, guarded=True)])
        found = whole[len(prompt) :]
        pairs = enumerate(zip(found, ids, strict=False))
        return found == ids, next((place for place, (one, other) in pairs if one != other), min(len(found), len(ids)))


def rendering_of(source: Source) -> Rendering:
    """The source's own.

    Raises:
        FuserlError: it has no fast tokenizer, or no template.
    """
    tokenizer = load_tokenizer(source.path, revision=source.revision)
    return Rendering(load_template(tokenizer, chat_template=source.chat_template, date_string=source.date_string))

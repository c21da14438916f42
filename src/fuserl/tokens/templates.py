"""Chat templates: one rendering for training, sampling and evaluation, with a hash that says which.

A training text is the generation prompt, the response exactly as it was written, and the end of the turn. That is what
the model sees when it answers, also where a template would rewrite an earlier answer (trim it, drop its thinking).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from fuserl.errors import FuserlError
from fuserl.records.schema import Message
from fuserl.tokens.guard import Hidden, control_strings, guarded_tokenizer, names_for, pattern_of
from fuserl.tokens.render import render, within

PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "{{ m['content'] + ('\n' if m['role'] != 'assistant' else eos_token or '') }}{% endfor %}"
)
TEXT = (  # where there is no BOS, EOS parts the texts of a corpus
    "{{ bos_token or eos_token or '' }}"
    "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] + (eos_token or '') }}{% endfor %}"
)
NAMED = {"plain": PLAIN, "text": TEXT}
_ANSWER = "fuserl answer"
PATIENCE = 10.0  # seconds for a template's first two conversations, of a word each


class Text(NamedTuple):
    """A text to encode, and by which tokenizer."""

    text: str
    guarded: bool  # the template's control tokens go by their names in the guarded tokenizer


class PromptText(NamedTuple):
    """A rendered prompt."""

    whole: Text
    tail: Text  # from its last control token on, or all of it: tokens before it do not depend on what follows


@dataclass(frozen=True)
class Template:
    """A tokenizer with its chat template, pinned."""

    tokenizer: Any
    chat_template: str
    date_string: str
    end_of_turn: int  # id of the token that ends a response
    hash: str
    controls: tuple[str, ...]  # strings that make control tokens when the template writes them, longest first

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant's answer begins.

        Raises:
            FuserlError: the template refuses the conversation (a system turn, say).
        """
        return self._render(_plain(messages), add_generation_prompt=True)

    def prompt_text(self, messages: Sequence[Message], *, guarded: bool = False) -> PromptText:
        """The prompt, guarded where its content needs it or the caller does (a response that needs it follows)."""
        guarded = guarded or not all(self.is_harmless(message.content) for message in messages)
        if guarded:
            hidden = Hidden(messages, self._controls)
            text = hidden.restore(self._named(self.render_prompt(hidden.messages)))
        else:
            text = self.render_prompt(messages)
        starts = [found.start() for found in self._cuts[guarded].finditer(text)]
        return PromptText(Text(text, guarded), Text(text[starts[-1] if starts else 0 :], guarded))

    def conversation_text(self, messages: Sequence[Message]) -> Text:
        """A finished conversation, answers and what the template puts behind them: what reward models read.

        Unlike a training text it is the template's own, also where that rewrites an answer.

        Raises:
            FuserlError: the template refuses the conversation (a system turn, say).
        """
        if all(self.is_harmless(message.content) for message in messages):
            return Text(self._render(_plain(messages), add_generation_prompt=False), False)
        hidden = Hidden(messages, self._controls)
        text = self._render(_plain(hidden.messages), add_generation_prompt=False)
        return Text(hidden.restore(self._named(text)), True)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, as in training; control strings in the messages are text."""
        return self.with_bos(self.encode([self.prompt_text(messages).whole])[0])

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each text, in order."""
        found: list[list[int]] = [[]] * len(texts)
        for guarded in (False, True):
            places = [place for place, text in enumerate(texts) if text.guarded is guarded]
            if not places:
                continue
            backend = self._guarded if guarded else self._ordinary()
            encodings = backend.encode_batch_fast([texts[place].text for place in places], add_special_tokens=False)
            for place, encoding in zip(places, encodings, strict=True):
                found[place] = encoding.ids
        return found

    def prompt_tokens(self, prompt: Text, response: str) -> int:
        """How many leading tokens of prompt and response lie wholly in the prompt's text."""
        text = prompt.text if prompt.guarded else self._named(prompt.text)
        offsets = self._guarded.encode(text + response, add_special_tokens=False).offsets
        inside = (start < len(text) and end <= len(text) for start, end in offsets)
        return next((number for number, within in enumerate(inside) if not within), len(offsets))

    def with_bos(self, ids: list[int]) -> list[int]:
        """BOS before a whole text, where the tokenizer starts texts with it and the template does not."""
        return [self.tokenizer.bos_token_id, *ids] if self._adds_bos else ids

    def is_harmless(self, text: str) -> bool:
        """The text spells no control token, nor does what the tokenizer's normaliser makes of it."""
        if self._controls.search(text):
            return False
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        return normalizer is None or not self._controls.search(normalizer.normalize_str(text))

    @property
    def stop_ids(self) -> set[int]:
        """Tokens after which an answer is over."""
        return {self.end_of_turn} | ({self.tokenizer.eos_token_id} - {None})

    @cached_property
    def tokenizer_digest(self) -> str:
        """Of the tokenizer's whole state, but for truncation and padding, which every use of it sets anew."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def _render(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        return render(self.tokenizer, self.chat_template, self.date_string, messages, **kwargs)

    def _named(self, text: str) -> str:
        return self._controls.sub(lambda found: self._names[found.group()], text)

    def _ordinary(self) -> Tokenizer:
        """The tokenizer as it is, whatever an earlier use has set."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _names(self) -> dict[str, str]:
        return names_for(self.controls)

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        return pattern_of(self.controls)

    @cached_property
    def _guarded(self) -> Tokenizer:
        return guarded_tokenizer(self.tokenizer.backend_tokenizer, self._names)

    @cached_property
    def _cuts(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Control tokens, ordinary and named, that part a text before it is normalised: no token reaches over them."""
        plain = self.tokenizer.backend_tokenizer.normalizer is None
        added = {
            token.content for token in self.tokenizer.added_tokens_decoder.values() if plain or not token.normalized
        }
        strings = [string for string in self.controls if string in added]
        return pattern_of(strings), pattern_of([self._names[string] for string in strings])

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token
        if not bos or self.tokenizer("a")["input_ids"][:1] != [self.tokenizer.bos_token_id]:
            return False
        return not self._render([{"role": "user", "content": "a"}], add_generation_prompt=True).startswith(bos)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def load_template(tokenizer: Any, *, chat_template: str | None = None, date_string: str = "26 Jul 2024") -> Template:
    """A tokenizer's template, or another.

    Args:
        chat_template: null for the tokenizer's own; `plain` for "prompt, newline, answer"; `text` for the answer alone
            behind BOS, as base models read a corpus; a path to a .jinja file; or the template itself.

    Raises:
        FuserlError: there is no template, or no token that could end a response.
    """
    source = _template_text(tokenizer, chat_template)
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}
    with within(PATIENCE):
        turn, whole = (
            render(tokenizer, source, date_string, messages, add_generation_prompt=False)
            for messages in ([asked], [asked, answered])
        )
    tail = whole.rpartition(_ANSWER)[2]
    controls = control_strings(tokenizer, turn, tail)
    first = pattern_of(controls).search(tail)
    end = tokenizer.convert_tokens_to_ids(first.group()) if first else tokenizer.eos_token_id
    if end is None:
        raise FuserlError(
            "neither the chat template nor the tokenizer has a token that ends a response",
            where="`target.chat_template`",
            hint="give the tokenizer an eos_token, or a template that ends turns",
        )
    content = json.dumps([source, date_string, tokenizer.bos_token, tokenizer.eos_token, end])
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Template(tokenizer, source, date_string, end, digest, tuple(controls))


def _template_text(tokenizer: Any, chat_template: str | None) -> str:
    if chat_template is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise FuserlError(
                "the tokenizer has no chat template",
                where=f"`target.path={tokenizer.name_or_path}`",
                hint="give one with `target.chat_template=FILE.jinja`, or `target.chat_template=plain`",
            )
        return own
    if chat_template in NAMED:
        return NAMED[chat_template]
    if chat_template.endswith((".jinja", ".j2")):
        path = Path(chat_template).expanduser()
        if not path.is_file():
            raise FuserlError(
                "the chat template file does not exist", where=str(path), hint="check `target.chat_template`"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FuserlError(
                f"the chat template file cannot be read ({error})", where=str(path), hint="save it as UTF-8 text"
            ) from error
    return chat_template

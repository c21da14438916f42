"""Chat templates: one rendering for training, sampling and evaluation, with a hash that says which.

A training text is the generation prompt, the response exactly as it was written, and the end of the turn. That is what
the model sees when it answers, also where a template would rewrite an earlier answer (trim it, drop its thinking).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from fuserl.errors import FuserlError
from fuserl.records.schema import Message

PLAIN = "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] + ('\n' if m['role'] != 'assistant' else eos_token) }}{% endfor %}"
_ANSWER = "fuserl answer"


@dataclass(frozen=True)
class Template:
    """A tokenizer with its chat template, pinned."""

    tokenizer: Any
    chat_template: str
    date_string: str
    end_of_turn: int  # id of the token that ends a response
    hash: str = field(compare=True)

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant's answer begins.

        Raises:
            FuserlError: the template refuses the conversation (a system turn, say).
        """
        return self._render([{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, special strings in the messages being text."""
        return self._run_ids(self.pieces(messages))

    def encode_full(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids of prompt and response, without the end of the turn; whatever they hold is text."""
        pieces = self.pieces(messages)
        if pieces and not pieces[-1][0]:
            pieces = [*pieces[:-1], (False, pieces[-1][1] + response)]
        else:
            pieces = [*pieces, (False, response)]
        return self._run_ids(pieces)

    def is_harmless(self, *texts: str) -> bool:
        """No text holds a special token's string."""
        return not self._special_pattern or not any(self._special_pattern.search(text) for text in texts)

    def encode_texts(self, texts: Sequence[str], *, offsets: bool = False) -> Any:
        """Ordinary encoding of rendered, harmless texts: the tokenizer's own, BOS exactly once."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=offsets)
        if self._adds_bos:
            encoded["input_ids"] = [[self.tokenizer.bos_token_id, *ids] for ids in encoded["input_ids"]]
            if offsets:
                encoded["offset_mapping"] = [[(0, 0), *spans] for spans in encoded["offset_mapping"]]
        return encoded

    def pieces(self, messages: Sequence[Message]) -> list[tuple[bool, str]]:
        """(is a special token of the template, text) in order; special strings of the content are in text runs."""
        marked, originals = [], []
        for message in messages:
            content = message.content
            if self._special_pattern:
                content = self._special_pattern.sub(lambda match: _mark(originals, match.group()), content)
            marked.append(Message(message.role, content))
        text = self.render_prompt(marked)

        def restore(run: str) -> str:
            return re.sub("\ue000(\\d+)\ue001", lambda match: originals[int(match.group(1))], run) if originals else run

        if not self._special_pattern:
            return [(False, restore(text))]
        found, at = [], 0
        for match in self._special_pattern.finditer(text):
            if match.start() > at:
                found.append((False, restore(text[at : match.start()])))
            found.append((True, match.group()))
            at = match.end()
        return [*found, (False, restore(text[at:]))] if at < len(text) else found

    @property
    def stop_ids(self) -> set[int]:
        """Tokens after which an answer is over."""
        return {self.end_of_turn} | ({self.tokenizer.eos_token_id} - {None})

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        strings = special_strings(self.tokenizer)
        return re.compile("|".join(map(re.escape, strings))) if strings else None

    @cached_property
    def _adds_bos(self) -> bool:
        """The tokenizer starts texts with BOS and the template does not: then it is added, once."""
        bos = self.tokenizer.bos_token
        if not bos or self.tokenizer("a")["input_ids"][:1] != [self.tokenizer.bos_token_id]:
            return False
        return not self._render([{"role": "user", "content": "a"}], add_generation_prompt=True).startswith(bos)

    def _run_ids(self, pieces: Sequence[tuple[bool, str]]) -> list[int]:
        ids = [self.tokenizer.bos_token_id] if self._adds_bos else []
        for special, text in pieces:
            if special:
                ids.append(self.tokenizer.convert_tokens_to_ids(text))
            else:
                ids += self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _render(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        return render(self.tokenizer, self.chat_template, self.date_string, messages, **kwargs)


def render(tokenizer: Any, chat_template: str, date_string: str, messages: list[dict[str, str]], **kwargs: Any) -> str:
    """Apply a chat template with the date pinned, for templates that print one by either way."""
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            tokenize=False,
            date_string=date_string,
            strftime_now=lambda form: date_string,
            **kwargs,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise FuserlError(
            f"the chat template refuses this conversation: {error}",
            where=f"turns: {roles}",
            hint="mend the conversation (some templates allow no system turn), or give another `target.chat_template`",
        ) from error


def special_strings(tokenizer: Any) -> list[str]:
    """Strings that the tokenizer turns into special tokens, longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)


def load_template(tokenizer: Any, *, chat_template: str | None = None, date_string: str = "26 Jul 2024") -> Template:
    """A tokenizer's template, or another.

    Args:
        chat_template: null for the tokenizer's own; `plain` for "prompt, newline, answer"; a path to a .jinja file; or
            the template itself.

    Raises:
        FuserlError: there is no template, or no token that could end a response.
    """
    source = _template_text(tokenizer, chat_template)
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    tail = render(tokenizer, source, date_string, probe).rpartition(_ANSWER)[2]
    strings = special_strings(tokenizer)
    first = re.search("|".join(map(re.escape, strings)), tail) if strings else None
    end = tokenizer.convert_tokens_to_ids(first.group()) if first else tokenizer.eos_token_id
    if end is None:
        raise FuserlError(
            "neither the chat template nor the tokenizer has a token that ends a response",
            where="`target.chat_template`",
            hint="give the tokenizer an eos_token, or a template that ends turns",
        )
    content = json.dumps([source, date_string, tokenizer.bos_token, tokenizer.eos_token, end])
    return Template(tokenizer, source, date_string, end, hashlib.sha256(content.encode()).hexdigest()[:16])


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
    if chat_template == "plain":
        return PLAIN
    if chat_template.endswith((".jinja", ".j2")):
        path = Path(chat_template).expanduser()
        if not path.is_file():
            raise FuserlError(
                "the chat template file does not exist", where=str(path), hint="check `target.chat_template`"
            )
        return path.read_text(encoding="utf-8")
    return chat_template


def _mark(originals: list[str], text: str) -> str:
    originals.append(text)
    return f"\ue000{len(originals) - 1}\ue001"

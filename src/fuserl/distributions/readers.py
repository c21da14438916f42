"""Models that read the same texts: each with its own tokens, all under the target's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fuserl.distributions.marks import Vocabulary, of_tokenizer
from fuserl.errors import FuserlError
from fuserl.models.load import check_vocabulary, dtype_named, load_tokenizer, model_config
from fuserl.records.reading import Side
from fuserl.sources.source import RULES, content_of
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import Template, load_template
from fuserl.tokens.tokenize import tokens_of

TARGET = "target"  # the target's name among the models
TOGETHER = "all"  # the fused store's name where all sources give into one
SETTINGS = ("path", "revision", "dtype", "trust_remote_code")
OF_GENERATE = {*RULES, "name", "sampling", "engine"}  # what files of conf/source/ say besides; not read here


@dataclass(frozen=True)
class Model:
    """A causal language model that reads texts."""

    name: str
    path: str  # Hugging Face folder or hub name
    revision: str | None
    dtype: str
    trust_remote_code: bool
    content: str | None = None  # digest of a local model's files

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any], unsaid: Mapping[str, Any]) -> Model:
        """From its settings, what they leave out from `unsaid`.

        Raises:
            FuserlError: it has no path, or a setting is out of its range.
        """
        said = {key: unsaid.get(key) if given.get(key) is None else given[key] for key in SETTINGS}
        setting = _setting(name)
        if not isinstance(said["path"], str) or not said["path"].strip():
            raise FuserlError(
                f"`{name}` has no model", where=f"`{setting}.path`", hint="give a Hugging Face folder or a hub name"
            )
        for key, value in said.items():
            fits, rule = RULES[key]
            if not fits(value):
                raise FuserlError(f"`{key}` is {value!r}", where=f"`{setting}`", hint=f"it must be {rule}")
        return cls(name, **said)

    @property
    def setting(self) -> str:
        """Where its settings stand."""
        return _setting(self.name)

    def identity(self) -> dict[str, Any]:
        """What decides its distributions. A copied folder is the same model."""
        return {"model": self.content or self.path, "revision": self.revision, "dtype": self.dtype}

    def with_content(self) -> Model:
        """Known by what its folder holds, where it is a folder. All bytes are read."""
        return replace(self, content=content_of(self.path))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors inside name this model's settings."""
        try:
            yield
        except FuserlError as error:
            hint = error.hint.replace("`target.", f"`{self.setting}.").replace("`trainer.", "`collector.")
            raise FuserlError(error.what, where=f"`{self.setting}.path={self.path}`", hint=hint) from error


def sources_of(given: Mapping[str, Any] | None, unsaid: Mapping[str, Any]) -> list[Model]:
    """The sources, in the order of their settings.

    Raises:
        FuserlError: there is none, or one has no path, an unknown setting, or a name that cannot be a folder's.
    """
    if not given:
        raise FuserlError(
            "no source is chosen", where="`sources`", hint="give `+sources.NAME.path=FOLDER_OR_HUB_NAME`, once a model"
        )
    for name, settings in given.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", str(name)) or name in (TARGET, TOGETHER):
            raise FuserlError(
                f"a source cannot be called `{name}`",
                where="`sources`",
                hint=f"letters, digits, `_`, `-`, `.`; not `{TARGET}`, not `{TOGETHER}`: it names a folder",
            )
        if settings is not None and not isinstance(settings, Mapping):
            raise FuserlError(
                "a source is its settings", where=f"`sources.{name}`", hint=f"give `+sources.{name}.path=...`"
            )
        if unknown := sorted({str(key) for key in settings or {}} - {*SETTINGS, *OF_GENERATE}):
            raise FuserlError(
                f"there is no setting `{unknown[0]}`",
                where=f"`sources.{name}`",
                hint=f"there are {', '.join(SETTINGS)}",
            )
    return [Model.of(name, settings or {}, unsaid) for name, settings in given.items()]


class Sequence(NamedTuple):
    """A text's tokens as they are aligned. Position i of a model says what follows token i."""

    ids: Int[np.ndarray, " tokens"]
    start: int  # the position that says what the first trained token is: row 0 of the text's distributions


@dataclass(frozen=True)
class Reader:
    """A model with the texts in its own tokens."""

    model: Model
    template: Template
    store: TokenStore
    vocabulary: Vocabulary
    context: int | None  # tokens that the model knows positions for; None: it does not say

    def sequence(self, row: int, column: int, scope: str) -> Sequence:
        """Tokens of a prompt and a response, or of the response behind the prompt's last token.

        Args:
            scope: `conversation` or `response`.
        """
        prompt, branch = self.store.prompt(row), self.store.branch(row, column)
        prompt = prompt if scope == "conversation" else prompt[-1:]
        ids = np.concatenate([prompt, branch]).astype(np.int64)
        return Sequence(ids, len(prompt) + int(self.store.untrained[row, column]) - 1)

    def too_long(self) -> Bool[np.ndarray, "N K"]:
        """Texts with more tokens than the model has positions for."""
        lengths = np.asarray(self.store.prompt_tokens)[:, None] + np.asarray(self.store.branch_tokens)
        return lengths > (self.context or np.inf)


def reader(
    model: Model, side: Side, cache: Path, *, chat_template: str | None, date_string: str, progress_bar: bool
) -> Reader:
    """Tokenise the texts for a model, or find them in the cache.

    Args:
        chat_template: the target's, for every model; its control tokens are the model's own where it has them, text
            where it has not, and a response ends with the token that ends one for the model.

    Raises:
        FuserlError: the model's configuration, tokenizer or template cannot be loaded, or a row is bad.
    """
    with model.told():
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        context = None
        if not model.trust_remote_code:  # else the model alone says, once it is loaded
            check_vocabulary(model.path, tokenizer)
            config = model_config(model.path, revision=model.revision)
            dtype_named(model.dtype, config)
            context = getattr(config.get_text_config(), "max_position_embeddings", None)
        template = load_template(tokenizer, chat_template=chat_template, date_string=date_string)
    store = tokens_of(side, template, cache / "tokens", what=f"tokenising for {model.name}", show=progress_bar)
    return Reader(model, template, store, _ending_with(of_tokenizer(tokenizer), template.end_of_turn), context)


def _ending_with(vocabulary: Vocabulary, end: int) -> Vocabulary:
    """The ends of a response are counterparts, whatever else these tokens are; the last role of a token counts."""
    others = {role: token for role, token in vocabulary.roles.items() if role != "eos"}
    return replace(vocabulary, roles={**others, "eos": end})


def _setting(name: str) -> str:
    return name if name == TARGET else f"sources.{name}"

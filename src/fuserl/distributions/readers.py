"""Models that read the same texts: each with its own tokens, all under the target's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fuserl.distributions.marks import Vocabulary, of_tokenizer
from fuserl.errors import FuserlError
from fuserl.models.load import check_vocabulary, load_tokenizer
from fuserl.records.formats import ReadReport
from fuserl.records.inputs import num_rows
from fuserl.records.reading import Side
from fuserl.sources.source import content_of
from fuserl.terminal import bar
from fuserl.tokens.store import TokenStore
from fuserl.tokens.templates import Template, load_template
from fuserl.tokens.tokenize import encode_dataset

SETTINGS = ("path", "revision", "dtype", "trust_remote_code")


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
        """From `sources.NAME`, what it leaves out from `unsaid`.

        Raises:
            FuserlError: it has no path.
        """
        said = {key: given.get(key, unsaid.get(key)) for key in SETTINGS}
        if not isinstance(said["path"], str) or not said["path"]:
            raise FuserlError(
                "the source has no model", where=f"`sources.{name}.path`", hint="give a folder or a hub name"
            )
        return cls(name, **said)

    def identity(self) -> dict[str, Any]:
        """What decides its distributions. A copied folder is the same model."""
        return {"model": self.content or self.path, "revision": self.revision, "dtype": self.dtype}

    def with_content(self) -> Model:
        """Known by what its folder holds, where it is a folder."""
        return replace(self, content=content_of(self.path))


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

    def sequence(self, row: int, column: int, scope: str) -> Sequence:
        """Tokens of a prompt and a response, or of the response behind the prompt's last token.

        Args:
            scope: `conversation` or `response`.
        """
        prompt, branch = self.store.prompt(row), self.store.branch(row, column)
        prompt = prompt if scope == "conversation" else prompt[-1:]
        ids = np.concatenate([prompt, branch]).astype(np.int64)
        return Sequence(ids, len(prompt) + int(self.store.untrained[row, column]) - 1)

    def num_tokens(self, row: int, column: int) -> int:
        """Rows of the response's distributions: its trained tokens."""
        return int(self.store.num_tokens[row, column])


def reader(
    model: Model, side: Side, cache: Path, *, chat_template: str | None, date_string: str, progress_bar: bool
) -> Reader:
    """Tokenise the texts for a model, or find them in the cache.

    Args:
        chat_template: the target's, for every model; its control tokens are the model's own where it has them, text
            where it has not, and a response ends with the token that ends one for the model.

    Raises:
        FuserlError: tokenizer or template cannot be loaded, or a row is bad.
    """
    tokenizer = load_tokenizer(model.path, revision=model.revision)
    check_vocabulary(model.path, tokenizer)
    template = load_template(tokenizer, chat_template=chat_template, date_string=date_string)
    report = ReadReport()
    what = f"tokenising for {model.name}"
    with bar(what, lambda: num_rows(side.path, side.split), show=progress_bar) as told:
        store = encode_dataset(
            side.groups(report),
            template,
            cache / "tokens",
            content=side.content(),
            notes=lambda: {"skipped": report.skipped},
            progress=lambda: told(report.rows),
        )
    vocabulary = of_tokenizer(tokenizer)
    roles = dict(vocabulary.roles) | {"eos": template.end_of_turn}  # the ends of a response are counterparts
    return Reader(model, template, store, replace(vocabulary, roles=roles))


def keys_of(store: TokenStore, used: Bool[np.ndarray, "N K"]) -> dict[str, tuple[int, int]]:
    """Key -> (row, column) of every different text, in the order of rows; see `tokens.store.response_key`."""
    rows, columns = np.nonzero(used & np.asarray(store.valid))
    found: dict[str, tuple[int, int]] = {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        found.setdefault(bytes(store.keys[row, column]).hex(), (row, column))
    return found

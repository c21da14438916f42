"""Groups as tokens: one boundary between prompt and responses, the same for the whole group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fuserl.errors import FuserlError
from fuserl.records.formats import ReadReport
from fuserl.records.inputs import num_rows
from fuserl.records.reading import Side
from fuserl.records.schema import PromptGroup
from fuserl.terminal import bar
from fuserl.tokens.cores import all_cores
from fuserl.tokens.store import TokenStore, TokenWriter
from fuserl.tokens.templates import PromptText, Template, Text

LAYOUT = 3  # raise it when the meaning of a stored token or column changes


@dataclass(frozen=True)
class EncodedGroup:
    """A group's tokens. A response's branch continues the shared prompt and ends with the end-of-turn token."""

    prompt: np.ndarray  # int32 [L]
    responses: tuple[np.ndarray, ...]  # int32, one a response, in the group's order
    untrained: tuple[int, ...]  # leading tokens of each branch that are prompt text (tokens merged over the boundary)


def encode_group(group: PromptGroup, template: Template) -> EncodedGroup:
    """Tokens of one group; see `encode_groups`."""
    return next(encode_groups([group], template))[1]


def encode_groups(
    groups: Iterable[PromptGroup], template: Template, batch: int = 128
) -> Iterator[tuple[PromptGroup, EncodedGroup]]:
    """Encode prompt and prompt + response as whole texts; the shared prompt is their longest common token prefix.

    What comes before the prompt's last control token is encoded once a group: no token reaches over it.
    """
    stream = iter(groups)
    while chunk := list(islice(stream, batch)):
        texts: list[Text] = []
        prompts = [_lay_out(group, template, texts) for group in chunk]
        with all_cores():
            ids = iter(template.encode(texts))
        for group, prompt in zip(chunk, prompts, strict=True):
            rows = list(islice(ids, 2 + len(group.responses)))
            yield group, _branched(group, template, prompt, rows)


def _lay_out(group: PromptGroup, template: Template, texts: list[Text]) -> PromptText:
    """Append a group's texts: its prompt, the prompt's tail, and the tail with each response."""
    prompt = template.prompt_text(group.prompt)
    guarded = prompt if prompt.tail.guarded else None
    texts += prompt
    for response in group.responses:
        if prompt.tail.guarded or template.is_harmless(response.text):
            texts.append(Text(prompt.tail.text + response.text, prompt.tail.guarded))
            continue
        guarded = guarded or template.prompt_text(group.prompt, guarded=True)
        texts.append(Text(guarded.tail.text + response.text, guarded=True))
    return prompt


def _branched(group: PromptGroup, template: Template, prompt: PromptText, rows: list[list[int]]) -> EncodedGroup:
    """Args: rows: token ids of the prompt, of its tail, and of the tail with each response."""
    whole, tail, *fulls = rows
    head = template.with_bos(whole)[: -len(tail)]
    shared = len(tail)
    if any(full[:shared] != tail for full in fulls):
        shared = min(_common(tail, full) for full in fulls)
    if not head and not shared:
        raise FuserlError(
            "prompt and responses share no first token, so there is nothing to answer to",
            where=f"group `{group.id}`",
            hint="use a chat template or a tokenizer with a BOS token",
        )
    untrained = [0] * len(fulls)
    if shared < len(tail):
        inside = [template.prompt_tokens(prompt.tail, response.text) for response in group.responses]
        untrained = [max(0, count - shared) for count in inside]
    branches = tuple(np.array([*full[shared:], template.end_of_turn], dtype=np.int32) for full in fulls)
    return EncodedGroup(np.array([*head, *tail[:shared]], dtype=np.int32), branches, tuple(untrained))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def encode_dataset(
    groups: Iterable[PromptGroup],
    template: Template,
    cache: Path,
    *,
    content: str,
    notes: Callable[[], Any] = lambda: None,
    progress: Callable[[], None] | None = None,
) -> TokenStore:
    """Tokens of a data set, from the cache or computed once: keyed by content, template, tokenizer and layout.

    Args:
        groups: read only where the cache has no tokens of theirs; never held.
        content: digest of all that decides the groups.
        notes: asked after the last group for what shall be kept beside the tokens (JSON).
        progress: called after every batch.
    """
    key = [LAYOUT, content, template.hash, template.tokenizer_digest]
    folder = cache / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    store = TokenStore.open(folder)
    if store is not None:
        return store
    with TokenWriter(folder) as writer:
        for number, (group, encoded) in enumerate(encode_groups(groups, template)):
            writer.add(group, encoded.prompt, encoded.responses, encoded.untrained)
            if progress and number % 128 == 0:
                progress()
        return writer.close(notes())


def tokens_of(
    side: Side, template: Template, cache: Path, *, what: str = "tokenising", show: bool = True
) -> TokenStore:
    """Tokens of a side of a data set, see `encode_dataset`; its notes say which rows reading left out.

    Args:
        what: beside the progress bar, which `show` allows.
    """
    report = ReadReport()
    with bar(what, lambda: num_rows(side.path, side.split), show=show) as told:
        return encode_dataset(
            side.groups(report),
            template,
            cache,
            content=side.content,
            notes=lambda: {"skipped": report.skipped},
            progress=lambda: told(report.rows),
        )

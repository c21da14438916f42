"""Groups as tokens: one boundary between prompt and responses, the same for the whole group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fuserl.errors import FuserlError
from fuserl.records.manifest import digest_of
from fuserl.records.schema import PromptGroup
from fuserl.tokens.store import TokenStore, TokenWriter
from fuserl.tokens.templates import Template

LAYOUT = 1  # raise it when the meaning of a stored token changes


@dataclass(frozen=True)
class EncodedGroup:
    """A group's tokens. A response's branch continues the shared prompt and ends with the end-of-turn token."""

    prompt: np.ndarray  # int32 [L]
    responses: tuple[np.ndarray, ...]  # int32, one a response, in the group's order
    untrained: tuple[int, ...]  # leading tokens of each branch that are prompt text (tokens merged over the boundary)


def encode_group(group: PromptGroup, template: Template) -> EncodedGroup:
    """Tokens of one group; see `encode_groups`."""
    return next(encode_groups([group], template))


def encode_groups(groups: Iterable[PromptGroup], template: Template, batch: int = 64) -> Iterator[EncodedGroup]:
    """Encode prompt and prompt + response as whole texts; the shared prompt is their longest common token prefix."""
    stream = iter(groups)
    while chunk := list(islice(stream, batch)):
        texts, starts = [], []
        for group in chunk:
            prompt = template.render_prompt(group.prompt)
            starts.append(len(texts))
            texts += [prompt, *(prompt + response.text for response in group.responses)]
        ids = template.encode_texts(texts)["input_ids"]
        for group, start in zip(chunk, starts, strict=True):
            rows = ids[start : start + 1 + len(group.responses)]
            contents = [m.content for m in group.prompt] + [r.text for r in group.responses]
            if not template.is_harmless(*contents):
                rows = [template.encode_prompt(group.prompt)]
                rows += [template.encode_full(group.prompt, response.text) for response in group.responses]
            yield _branched(group, template, rows, texts[start])


def _branched(group: PromptGroup, template: Template, rows: list[list[int]], prompt_text: str) -> EncodedGroup:
    prompt, fulls = rows[0], rows[1:]
    boundary = len(prompt)
    if any(full[:boundary] != prompt for full in fulls):
        boundary = min(_common(prompt, full) for full in fulls)
    if boundary == 0:
        raise FuserlError(
            "prompt and responses share no first token, so there is nothing to answer to",
            where=f"group `{group.id}`",
            hint="use a chat template or a tokenizer with a BOS token",
        )
    untrained = [0] * len(fulls)
    if boundary < len(prompt):
        harmless = template.is_harmless(*(m.content for m in group.prompt), *(r.text for r in group.responses))
        untrained = [
            _prompt_tokens(group, template, index, prompt_text, harmless, full) for index, full in enumerate(fulls)
        ]
        untrained = [max(0, count - boundary) for count in untrained]
    branches = tuple(np.array([*full[boundary:], template.end_of_turn], dtype=np.int32) for full in fulls)
    return EncodedGroup(np.array(prompt[:boundary], dtype=np.int32), branches, tuple(untrained))


def _prompt_tokens(
    group: PromptGroup, template: Template, index: int, prompt_text: str, harmless: bool, full: list[int]
) -> int:
    """How many leading tokens of prompt + response lie wholly in the prompt's text."""
    if not harmless:  # no offsets over pieces: the tokens that prompt and whole have in common are prompt
        return _common(template.encode_prompt(group.prompt), full)
    spans = template.encode_texts([prompt_text + group.responses[index].text], offsets=True)["offset_mapping"][0]
    return sum(
        end <= len(prompt_text) and (end > start or position == 0) for position, (start, end) in enumerate(spans)
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokenizer_digest(template: Template) -> str:
    """Of the tokenizer's whole state."""
    return hashlib.sha256(template.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def encode_dataset(
    groups: Sequence[PromptGroup],
    template: Template,
    cache: Path,
    *,
    source_names: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> TokenStore:
    """Tokens of a data set, from the cache or computed once: keyed by content, template, tokenizer and layout.

    Args:
        source_names: the numbering of sources, which train and validation share.
        progress: told the number of groups done.
    """
    key = [LAYOUT, digest_of(groups), template.hash, tokenizer_digest(template), list(source_names)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    store = TokenStore.open(cache / digest)
    if store is not None:
        return store
    writer = TokenWriter(cache / digest, source_names)
    for number, (group, encoded) in enumerate(zip(groups, encode_groups(groups, template), strict=True)):
        writer.add(group, encoded.prompt, encoded.responses, encoded.untrained)
        if progress and number % 256 == 0:
            progress(number)
    return writer.close()

"""Real groups for the peers' benchmarks, cut so that both sides can train on exactly the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.kit import DATA
from fuserl.records.formats import read_groups
from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.records.store import write_groups
from fuserl.records.trl import write_preferences
from fuserl.tokens.plan import epoch_order
from fuserl.tokens.templates import Template
from fuserl.tokens.tokenize import encode_group

SAMPLES = 2  # of a source: a better one and a worse one


@dataclass(frozen=True)
class Task:
    """A data set as a benchmark uses it."""

    name: str
    folder: str
    document: int = 0  # tokens of text put before the question


TASKS = (
    Task("zeroeval_multi", "zeroeval_multi"),
    Task("alpaca_multi", "alpaca_multi"),
    Task("humaneval_multi", "humaneval_multi"),
    Task("long prompts", "zeroeval_multi", document=1000),
)


def dealt(
    task: Task, template: Template, count: int, *, responses: int = 8, max_length: int = 2048
) -> list[PromptGroup]:
    """Real groups of exactly so many different responses, dealt into sources of two, each with a better and a worse.

    So every response stands in exactly one pair, as with sources that were sampled and whose best and worst were kept.
    Left out: responses whose first token merges with the prompt's end, because trainers differ in what they train of
    such a token; groups with too few others; and groups longer than `max_length` tokens.

    Raises:
        SystemExit: the set has fewer such groups.
    """
    path = DATA / task.folder
    if not path.exists():
        raise SystemExit(f"{path} is needed; FUSERL_SHARED names the folder that holds `data/`")
    documents = _documents(path, task.document, template) if task.document else None
    found: list[PromptGroup] = []
    for group in read_groups(str(path), split="train", form="auto", on_bad_row="skip"):
        question = group.prompt[-1].content.strip()
        if documents is not None:
            question = f"{next(documents)}\n\n{question}"
        group = replace(group, prompt=(*group.prompt[:-1], Message("user", question)))
        if cut := _cut(group, template, responses, max_length):
            found.append(cut)
        if len(found) == count:
            return found
    raise SystemExit(f"`{task.name}` has {len(found)} groups of {responses} usable responses, {count} are needed")


def _cut(group: PromptGroup, template: Template, responses: int, max_length: int) -> PromptGroup | None:
    """The group with so many clean responses, or None."""
    texts = dict.fromkeys(response.text for response in group.responses)
    alone = {
        text: encode_group(replace(group, responses=(Response("", text),)), template) for text in texts if text.strip()
    }
    whole = max((len(one.prompt) for one in alone.values()), default=0)
    clean = [
        text
        for text, one in alone.items()
        if len(one.prompt) == whole and not any(one.untrained) and whole + len(one.responses[0]) <= max_length
    ]
    if len(clean) < responses:
        return None
    dealt_out = (
        Response(f"s{number // SAMPLES}", text, number % SAMPLES, float(number % SAMPLES == 0))
        for number, text in enumerate(clean[:responses])
    )
    return replace(group, responses=tuple(dealt_out), reference=None)


def _documents(path: Path, tokens: int, template: Template) -> Iterator[str]:
    """Texts of about so many tokens, made of the set's own answers."""
    words, text = template.tokenizer, []
    while True:
        for group in read_groups(str(path), split="train", form="auto", on_bad_row="skip"):
            text += words(group.responses[0].text + "\n")["input_ids"]
            while len(text) >= tokens:
                yield words.decode(text[:tokens])
                text = text[tokens:]


@dataclass(frozen=True)
class Lengths:
    """Tokens of one group."""

    prompt: int
    responses: tuple[int, ...]  # the end of the turn counted


def lengths(groups: Iterable[PromptGroup], template: Template) -> list[Lengths]:
    """Of every group."""
    encoded = (encode_group(group, template) for group in groups)
    return [Lengths(len(one.prompt), tuple(map(len, one.responses))) for one in encoded]


def as_planned(groups: Sequence[PromptGroup], *, seed: int = 0) -> list[PromptGroup]:
    """In the order in which a run with this seed trains them, for trainers that take rows as they come."""
    return [groups[int(row)] for row in epoch_order(len(groups), seed, 0, True)]


def write_for_both(groups: Sequence[PromptGroup], folder: Path, method: str) -> tuple[Path, Path]:
    """(our data set, TRL's file in the order of our plan)."""
    write_groups(groups, folder / "groups")
    theirs = folder / "rows.jsonl"
    _WRITERS[method](as_planned(groups), theirs)
    return folder / "groups", theirs


def _write_completions(groups: Iterable[PromptGroup], path: Path) -> None:
    """TRL's conversational prompt-completion format."""
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            prompt = [{"role": message.role, "content": message.content} for message in group.prompt]
            for response in group.responses:
                completion = [{"role": "assistant", "content": response.text}]
                file.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")


_WRITERS = {"dpo": write_preferences, "sft": _write_completions}

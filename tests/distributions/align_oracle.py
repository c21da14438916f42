"""What `align` must write, computed literally: a text at a time, full logits, loops over positions."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import literal
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fuserl.distributions import marks

K = 10
Row = dict[int, float]  # token -> probability


@lru_cache(20000)
def edit(a: str, b: str) -> int:
    return literal.edit_distance(a, b)


class Model:
    """A model, its tokenizer, and what each token of it is."""

    def __init__(self, folder: Path, end: str) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.vocabulary = marks.of_tokenizer(self.tokenizer)
        self.end = self.tokenizer.convert_tokens_to_ids(end)
        self.controls = [t for t in ("<|im_start|>", "<|im_end|>") if t in self.tokenizer.get_vocab()]
        self.bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token else []

    def text_ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A text in which nothing controls."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        found = backend.encode(text, add_special_tokens=False)
        backend.encode_special_tokens = False
        return found.ids, found.offsets

    def read(self, prompt: str, response: str) -> tuple[list[int], int]:
        """(ids of the whole conversation, where its first trained token stands)."""
        parts = [
            (True, "<|im_start|>"),
            (False, f"user\n{prompt}"),
            (True, "<|im_end|>"),
            (False, "\n"),
            (True, "<|im_start|>"),
        ]
        parts.append((False, "assistant\n"))
        if not self.controls:  # the template's control tokens are letters to this model
            parts = [(False, "".join(text for _, text in parts))]
        ids = list(self.bos)
        for controls, text in parts[:-1]:
            ids += [self.tokenizer.convert_tokens_to_ids(text)] if controls else self.text_ids(text)[0]
        before = parts[-1][1]
        last, offsets = self.text_ids(before + response)
        inside = [start < len(before) and end <= len(before) for start, end in offsets]
        return [*ids, *last, self.end], len(ids) + (inside.index(False) if False in inside else len(inside))


@dataclass
class Answer:
    """A text as one model reads it."""

    ids: list[int]
    first: int  # the first trained token
    steps: dict[int, list[tuple[int, float]]]  # position -> (token, log-prob), the likeliest first
    ce: float  # nats a token
    tails: dict[int, float]  # position -> probability that is not kept


@torch.no_grad()
def answer(model: Model, prompt: str, response: str) -> Answer:
    """One forward, full logits."""
    ids, first = model.read(prompt, response)
    logps = model.model(torch.tensor([ids])).logits[0].log_softmax(-1).double()
    steps, tails, nats = {}, {}, []
    for place in range(first - 1, len(ids) - 1):
        row = logps[place, : len(model.vocabulary)]
        steps[place] = [(int(t), float(row[t])) for t in row.argsort(descending=True)[:K]]
        tails[place] = 1 - math.fsum(math.exp(logp) for _, logp in steps[place])
        nats.append(-float(logps[place, ids[place + 1]]))
    return Answer(ids, first, steps, sum(nats) / len(nats), tails)


def vocabulary_map(rule: Any, source: Model, target: Model, nowhere: int) -> list[int]:
    """A rule on ordinary tokens; the ends of a turn belong together, other special ones by name, else nowhere."""
    ours, theirs = source.vocabulary, target.vocabulary
    of_target = [t for t in range(len(theirs)) if t not in theirs.special]
    of_source = [t for t in range(len(ours)) if t not in ours.special]
    found = rule([ours.texts[t] for t in of_source], [theirs.texts[t] for t in of_target])
    g = [nowhere] * len(ours)
    for token, place in zip(of_source, found, strict=True):
        g[token] = of_target[place] if place >= 0 else -1
    for token in ours.special:
        same = [other for other in theirs.special if theirs.names[other] == ours.names[token]]
        g[token] = same[0] if same else nowhere
    for role in ("bos", "pad", "unk"):
        if role in ours.roles and role in theirs.roles:
            g[ours.roles[role]] = theirs.roles[role]
    g[source.end] = target.end
    return g


def statistics_map(paths: list, source: Model, target: Model) -> list[int]:
    """MS over all texts."""
    ours, theirs = source.vocabulary, target.vocabulary
    counts: Counter[tuple[int, int]] = Counter()
    for ids, other_ids, path in paths:
        for i, j in path:
            c, t = other_ids[j], ids[i]
            if c not in theirs.special and t not in ours.special:
                counts[c, t] += 1
    unknown = theirs.roles.get("unk", target.end)
    candidates: dict[int, list[int]] = {}
    for c, t in counts:
        candidates.setdefault(t, []).append(c)
    g = vocabulary_map(lambda a, b: [-1] * len(a), source, target, unknown)
    for t in range(len(ours)):
        if t in ours.special:
            continue
        near = sorted(candidates.get(t, []))
        best = literal.statistics(
            [ours.texts[t]], [theirs.texts[c] for c in near], {(n, 0): counts[c, t] for n, c in enumerate(near)}, -1
        )[0]
        g[t] = near[best] if best >= 0 else unknown
    return g


def carried(
    mode: str, source: Model, target: Model, ours: Answer, theirs: Answer, path: list, maps: tuple
) -> list[Row]:
    """The source's rows at the target's trained tokens."""
    A = literal.matched(path, len(theirs.ids))
    texts = source.vocabulary.texts, target.vocabulary.texts
    rows = []
    for i in range(theirs.first - 1, len(theirs.ids) - 1):
        gold = {theirs.ids[i + 1]: 1.0}
        own = normalised(theirs.steps[i])
        step = literal._choose(mode, i, A[i], ours.ids, theirs.ids, texts, texts, maps)
        if step == "own":
            rows.append(own)
        elif step == "gold" or step not in ours.steps:  # the source was not asked there
            rows.append(gold)
        else:
            (row,) = literal.fuse(
                mode, ours.ids, theirs.ids[i : i + 1], [A[i]], texts, texts, maps, ours.steps, [own]
            )  # fmt: skip
            rows.append(row)
    return rows


def normalised(step: list[tuple[int, float]]) -> Row:
    total = math.fsum(math.exp(logp) for _, logp in step)
    return {token: math.exp(logp) / total for token, logp in step}


def fused(folders: dict[str, Path], data: Path, mode: str, mean: bool, only: str | None = None) -> list[list[Row]]:
    """Every different text's rows, in the order of the data."""
    ends = {"target": "<|im_end|>", "pieces": "</s>", "bytes": "<|endoftext|>"}
    models = {n: Model(f, ends[n]) for n, f in folders.items() if only is None or n in ("target", only)}
    texts = {(row["prompt"], r["text"]): None for row in map(json.loads, data.open()) for r in row["responses"]}
    read = {name: [answer(model, *text) for text in texts] for name, model in models.items()}
    target, brought = models["target"], {}
    for name in list(models)[1:]:
        source, bare = models[name], target.vocabulary.bare
        paths = [
            (a.ids, b.ids, literal.warp([source.vocabulary.bare[t] for t in a.ids], [bare[t] for t in b.ids], edit))
            for a, b in zip(read[name], read["target"], strict=True)
        ]
        unknown = target.vocabulary.roles.get("unk", target.end)
        maps = (
            vocabulary_map(literal.exact, source, target, -1),
            statistics_map(paths, source, target)
            if mode == "statistics"
            else vocabulary_map(literal.min_edit, source, target, unknown),
        )
        brought[name] = [
            carried(mode, source, target, a, b, path, maps)
            for a, b, (_, _, path) in zip(read[name], read["target"], paths, strict=True)
        ]
    brought["target"] = [[normalised(one.steps[i]) for i in one.steps] for one in read["target"]]
    found = []
    for number in range(len(texts)):
        ces = [read[name][number].ce for name in models]
        rows = [brought[name][number] for name in models]
        found.append(literal.avg_ce(ces, rows) if mean else rows[literal.min_ce(ces)])
    return found

"""Record what the literal implementation says of fixed strings, for `test_golden.py`:

    python tests/distributions/record_alignment.py

Paths of dynamic time warping between real tokenizers; vocabulary maps (EM, MinED, MS) between parts of real vocabularies;
fused distributions in all three modes, of drawn top-k lists.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import literal  # noqa: E402
import published  # noqa: E402

OUT = HERE / "alignment.json"
PAIRS = (("llama2", "qwen"), ("gpt2", "mistral"), ("t5", "llama3"))
K = 6


def path_case(source, target, text: str) -> dict:
    """Tokens of a text by both and the literal path."""
    ours, theirs = source.encode(text)[0], target.encode(text)[0]
    tokens = [source.vocabulary.bare[token] for token in ours], [target.vocabulary.bare[token] for token in theirs]
    return {"text": text, "source": ours, "target": theirs, "tokens": tokens, "path": literal.warp(*tokens)}


def drawn(rng: random.Random, ids: list[int], width: int) -> list[list]:
    """(id, logit) lists, largest first, that often have the true next token."""
    rows = []
    for place in range(len(ids)):
        tokens = set(rng.sample(range(width), K))
        if place + 1 < len(ids):
            tokens.add(ids[place + 1])
        logits = sorted((round(rng.uniform(-6, 3), 3) for _ in tokens), reverse=True)
        rows.append([list(one) for one in zip(rng.sample(sorted(tokens), len(tokens)), logits, strict=True)])
    return rows


def probabilities(rows: list[list]) -> list[dict[int, float]]:
    """Softmax over what is kept."""
    found = []
    for row in rows:
        total = sum(math.exp(logit) for _, logit in row)
        found.append({token: math.exp(logit) / total for token, logit in row})
    return found


def small(case: dict, source, target, rng: random.Random) -> dict:
    """The texts' tokens and some more, numbered anew, so that maps over whole vocabularies are quick."""
    sides = []
    for one, ids in ((source, case["source"]), (target, case["target"])):
        ordinary = [t for t in range(len(one.vocabulary)) if t not in one.vocabulary.special]
        kept = sorted({*ids, *rng.sample(ordinary, 250)})
        sides.append(([one.vocabulary.texts[t] for t in kept], [kept.index(t) for t in ids]))
    (source_texts, ours), (target_texts, theirs) = sides
    return {"source_texts": source_texts, "target_texts": target_texts, "source": ours, "target": theirs}


def fused_case(case: dict, source, target, seed: int) -> dict:
    """Maps and fused distributions, all from the literal rules."""
    rng = random.Random(seed)
    found = small(case, source, target, rng)
    texts = found["source_texts"], found["target_texts"]
    A = literal.matched([tuple(match) for match in case["path"]], len(found["target"]))
    counts: dict[tuple[int, int], int] = {}
    for target_place, places in enumerate(A):
        for place in places:
            pair = found["target"][target_place], found["source"][place]
            counts[pair] = counts.get(pair, 0) + 1
    exact = literal.exact(*texts)
    maps = {
        "exact": exact,
        "min_edit": literal.min_edit(*texts),
        "statistics": literal.statistics(*texts, counts, 0),
    }
    steps, own = drawn(rng, found["source"], len(texts[0])), drawn(rng, found["target"], len(texts[1]))
    fused = {}
    for mode, g in maps.items():
        arguments = found["source"], found["target"], A, texts, texts, (exact, g), steps, probabilities(own)
        fused[mode] = [sorted(row.items()) for row in literal.fuse(mode, *arguments)]
    ces = [1.25, 0.75]
    mixed = literal.avg_ce(ces, [[dict(row) for row in fused["min_edit"]], probabilities(own)])
    return found | {
        "path": case["path"],
        "counts": [[*pair, count] for pair, count in sorted(counts.items())],
        "maps": maps,
        "steps": steps,
        "own": own,
        "fused": fused,
        "ces": ces,
        "mean": [sorted(row.items()) for row in mixed],
    }


def main() -> None:
    """Record."""
    cases = []
    for number, pair in enumerate(PAIRS):
        source, target = map(published.load, pair)
        paths = [path_case(source, target, text) for text in published.TEXTS]
        fused = [fused_case(paths[place], source, target, 10 * number + place) for place in (0, 3, 4)]
        cases.append({"pair": pair, "paths": paths, "fused": fused})
    OUT.write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()

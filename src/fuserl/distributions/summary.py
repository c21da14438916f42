"""What `align` tells: how well each model reads the texts, how much of each went into what was fused, and from where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from fuserl.distributions.store import Distributions

ORIGINS = ("copied", "gold", "own")  # of a source's rows: from one of its positions, one-hot on the token, the target's


def read_by(name: str, read: Distributions, num_bytes: Mapping[str, int]) -> dict[str, Any]:
    """A model's figures over all texts that it could read.

    Args:
        num_bytes: of every text's response.
    """
    nats, tokens, size = 0.0, 0, 0
    unread: Counter[str] = Counter()
    for key, count in num_bytes.items():
        sample = read[key]
        if sample.notes["nats"] is None:
            unread[sample.notes["unread"]] += 1
            continue
        nats, tokens, size = nats + float(sample.notes["nats"]), tokens + len(sample.rows), size + count
    return {
        "model": name,
        "texts": len(num_bytes) - unread.total(),
        "unread": dict(unread),
        "tokens": tokens,
        "nats_per_token": nats / tokens if tokens else None,
        "bits_per_byte": nats / math.log(2) / size if size else None,
        "bytes_per_token_stored": read.dtype.itemsize,
    }


def fused_from(name: str, fused: Distributions) -> dict[str, Any]:
    """Of one fused store: mean weight of each model, origins of the sources' rows, texts that nobody could read."""
    weights: Counter[str] = Counter()
    origins: dict[str, Counter[str]] = {}
    empty, rows = 0, 0
    for key in fused:
        notes, count = fused[key].notes, len(fused[key].rows)
        rows += count
        empty += not notes["weights"]
        weights.update(notes["weights"])
        for source, counts in notes["origins"].items():
            origins.setdefault(source, Counter()).update(counts)
    return {
        "store": name,
        "texts": len(fused),
        "tokens": rows,
        "empty": empty,
        "weights": {model: weight / max(1, len(fused)) for model, weight in sorted(weights.items())},
        "origins": {
            source: {one: counts[one] / max(1, sum(counts.values())) for one in ORIGINS}
            for source, counts in sorted(origins.items())
        },
        "bytes_per_token": fused.dtype.itemsize,
    }


def tables(models: Sequence[Mapping[str, Any]], fused: Iterable[Mapping[str, Any]]) -> list[Table]:
    """For the terminal."""
    names = ("model", "texts", "unread", "tokens", "nats a token", "bits a byte")
    reading = Table(*names, title="how each model reads the texts")
    for one in models:
        numbers = (one["nats_per_token"], one["bits_per_byte"])
        shown = ["-" if number is None else f"{number:.4f}" for number in numbers]
        unread = ", ".join(f"{count:,} {why}" for why, count in one["unread"].items())
        reading.add_row(str(one["model"]), f"{one['texts']:,}", unread, f"{one['tokens']:,}", *shown)
    mixing = Table("fused", "model", "weight", *ORIGINS, title="what was fused")
    for store in fused:
        if store["empty"]:
            mixing.add_row(
                str(store["store"]), f"none: {store['empty']:,} texts", f"{store['empty'] / store['texts']:.1%}"
            )
        for model, weight in store["weights"].items():
            origin = store["origins"].get(model, {})
            shares = [f"{origin[one]:.1%}" if one in origin else "" for one in ORIGINS]
            mixing.add_row(str(store["store"]), model, f"{weight:.1%}", *shares)
    return [reading, mixing]

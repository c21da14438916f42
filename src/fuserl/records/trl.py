"""Written out for TRL: prompt, chosen, rejected, as conversations, so that a peer trains on the same pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuserl.errors import FuserlError
from fuserl.records.manifest import write_text_atomically
from fuserl.records.schema import PromptGroup, Response


def write_preferences(groups: Iterable[PromptGroup], path: str | Path, *, pairs: str = "per_source") -> int:
    """Write JSON lines of TRL's preference format.

    Args:
        pairs: `per_source` best against worst of every source, `best_source` of the source that owns the best.

    Returns:
        The number of pairs.
    """
    if pairs not in ("per_source", "best_source"):
        raise FuserlError(f"there is no pairing `{pairs}`", hint="one of per_source, best_source")
    rows = []
    for group in groups:
        prompt = [{"role": message.role, "content": message.content} for message in group.prompt]
        for chosen, rejected in pairs_of(group, pairs):
            sides = {
                name: [{"role": "assistant", "content": side.text}]
                for name, side in (("chosen", chosen), ("rejected", rejected))
            }
            rows.append(json.dumps({"prompt": prompt, **sides, "source": chosen.source}, ensure_ascii=False))
    try:
        write_text_atomically(Path(path), "".join(row + "\n" for row in rows))
    except OSError as error:
        raise FuserlError(
            f"the file cannot be written ({error})", where=str(path), hint="give a folder that exists"
        ) from error
    return len(rows)


def pairs_of(group: PromptGroup, pairs: str) -> Iterator[tuple[Response, Response]]:
    """Best and worst inside a source, where their rewards differ; the first of equals."""
    scored = [(response.reward, response) for response in group.responses if response.reward is not None]
    if not scored:
        return

    def reward(entry: tuple[float, Response]) -> float:
        return entry[0]

    owner = max(scored, key=reward)[1].source
    for source in dict.fromkeys(response.source for _, response in scored):
        own = [entry for entry in scored if entry[1].source == source]
        best, worst = max(own, key=reward), min(own, key=reward)
        if best[0] > worst[0] and (pairs == "per_source" or source == owner):
            yield best[1], worst[1]

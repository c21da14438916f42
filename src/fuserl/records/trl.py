"""Written out for TRL: prompt, chosen, rejected, as conversations, so that a peer trains on the same pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fuserl.errors import FuserlError
from fuserl.records.manifest import written_atomically
from fuserl.records.schema import PromptGroup, Response

Pairing = Callable[[PromptGroup], Iterable[tuple[Response, Response]]]


def write_preferences(groups: Iterable[PromptGroup], path: str | Path, *, pairs: str | Pairing = "per_source") -> int:
    """Write JSON lines of TRL's preference format, a pair at a time; the file is whole or as it was.

    Args:
        pairs: `per_source` best against worst of every source, `best_source` of the source that owns the best; or a
            function that says which (chosen, rejected) a group has.

    Returns:
        The number of pairs.

    Raises:
        FuserlError: there is no such pairing, the file cannot be written, or a text is no valid Unicode.
    """
    if isinstance(pairs, str) and pairs not in ("per_source", "best_source"):
        raise FuserlError(f"there is no pairing `{pairs}`", hint="one of per_source, best_source")
    num_pairs, group = 0, None
    try:
        with written_atomically(Path(path)) as file:
            for group in groups:
                for chosen, rejected in pairs_of(group, pairs) if isinstance(pairs, str) else pairs(group):
                    file.write(json.dumps(_row(group, chosen, rejected), ensure_ascii=False, default=str) + "\n")
                    num_pairs += 1
    except OSError as error:
        raise FuserlError(
            f"the file cannot be written ({error})", where=str(path), hint="give a folder that exists"
        ) from error
    except UnicodeEncodeError as error:
        raise FuserlError(
            "a text holds a lone surrogate, which is no valid Unicode",
            where=f"group `{group.id if group else ''}`",
            hint="mend the text; `read_groups` refuses such rows",
        ) from error
    return num_pairs


def _row(group: PromptGroup, chosen: Response, rejected: Response) -> dict[str, Any]:
    return {
        "prompt": [{**m.extra, "role": m.role, "content": m.content} for m in group.prompt],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "source": chosen.source,
    }


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

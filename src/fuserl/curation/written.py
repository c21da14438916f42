"""The data sets that `select` leaves behind: the piles as their mixture wants them, and pairs for TRL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fuserl.curation.keep import Keep
from fuserl.curation.lines import read_lines
from fuserl.curation.mixture import Mixture, Quota, place_of, quotas, taken
from fuserl.curation.staging import PILES, Table
from fuserl.records.formats import ReadReport, read_groups
from fuserl.records.manifest import read_manifest, written_atomically
from fuserl.records.schema import PromptGroup, Response
from fuserl.records.store import write_groups
from fuserl.records.trl import write_preferences


def write(
    piles: Path, output: Path, mixtures: Mapping[str, Mixture], about: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write `output/sft/train` and so on; one that is there already is left alone, an empty one is not written.

    Args:
        piles: where `stage` left them; `mixture.jsonl` there lists the prompts that a mixture left out.
        about: kept in each manifest.

    Returns:
        Pile -> what was written, as {"prompts", "responses"}, its "digest", and "mixture": part -> asked, there, given.
    """
    found = {}
    quotas_of = {name: _quotas(_mixture(mixtures, name), piles / name) for name in PILES}
    _list_left_out(piles, mixtures, quotas_of)
    for name in PILES:
        side, split = name.split("/")
        mixture, quota = _mixture(mixtures, name), quotas_of[name]
        table, folder = Table(), output / name
        groups = _counted(_groups(piles / name, mixture, quota), table)
        if not (folder / "manifest.json").exists():
            _write(groups, folder, {"select": {**about, "side": side, "split": split}})
        else:
            for _ in groups:
                pass
        digest = read_manifest(folder).digest if folder.exists() else None
        given = {part: [one.asked, one.there, one.given] for part, one in quota.items()}
        found[name] = {**table.plain(), "digest": digest, "mixture": given}
    return found


def export_pairs(output: Path, protocol: Callable[[str], Keep | None]) -> dict[str, int]:
    """Write the pairs of `output/po` for TRL, as `output/trl/<split>.jsonl`; split -> pairs.

    Args:
        protocol: the preference protocol of a domain. What it kept, it keeps again.
    """

    def pairs(group: PromptGroup) -> Iterator[tuple[Response, Response]]:
        keep = protocol(group.domain)
        for pair in keep(group).pairs if keep else ():
            yield group.responses[pair.chosen], group.responses[pair.rejected]

    counts = {}
    for folder in sorted((output / "po").glob("*/manifest.json")):
        (output / "trl").mkdir(exist_ok=True)
        groups = read_groups(folder.parent, report=ReadReport())
        counts[folder.parent.name] = write_preferences(
            groups, output / "trl" / f"{folder.parent.name}.jsonl", pairs=pairs
        )
    return counts


def _write(groups: Iterator[PromptGroup], folder: Path, about: dict[str, Any]) -> None:
    first = next(groups, None)
    if first is not None:
        write_groups(_after(first, groups), folder, manifest_extra=about)


def _after(first: PromptGroup, groups: Iterator[PromptGroup]) -> Iterator[PromptGroup]:
    yield first
    yield from groups


def _mixture(mixtures: Mapping[str, Mixture], name: str) -> Mixture | None:
    """Of a pile: training prompts have one where it is configured."""
    side, split = name.split("/")
    return mixtures.get(side) if split == "train" else None


def _list_left_out(piles: Path, mixtures: Mapping[str, Mixture], quotas_of: Mapping[str, Mapping[str, Quota]]) -> None:
    with written_atomically(piles / "mixture.jsonl") as file:
        for name in PILES:
            mixture = _mixture(mixtures, name)
            for group, _ in read_lines(piles / name) if mixture else ():
                if not any(True for _ in taken(mixture, quotas_of[name], [group])):
                    row = [
                        f"{name.split('/')[0]} mixture",
                        group.id,
                        group.domain,
                        None,
                        None,
                        "more than was asked for",
                    ]
                    file.write(json.dumps(row) + "\n")


def _quotas(mixture: Mixture | None, pile: Path) -> dict[str, Quota]:
    if mixture is None:
        return {}
    places: dict[str, list[tuple[float, str]]] = {}
    for group, _ in read_lines(pile):
        places.setdefault(mixture.part_of(group), []).append(place_of(group.id))
    return quotas(mixture, places)


def _groups(pile: Path, mixture: Mixture | None, quota: Mapping[str, Quota]) -> Iterator[PromptGroup]:
    groups = (group for group, _ in read_lines(pile))
    return groups if mixture is None else taken(mixture, quota, groups)


def _counted(groups: Iterator[PromptGroup], table: Table) -> Iterator[PromptGroup]:
    for group in groups:
        table.add(group)
        yield group
